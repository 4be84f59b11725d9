"""`llvq export`: a box for a target that is named, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from llvq.artifact import Box
from llvq.cli.export import next_step
from tests.cli.conftest import Typed

Invoke = Callable[..., Result]


def test_a_program_becomes_a_box_beside_the_user(box: Typed) -> None:
    assert json.loads((box.path / "manifest.json").read_bytes())["target"] == "cpu"
    assert "numerics w4a4-emulated" in box.stdout
    assert "next: llvq run model.llvq --prompt" in box.stdout
    assert list((box.path / "checks").iterdir())


def test_json_has_the_id_and_the_checked_stages(invoke: Invoke, program: Typed) -> None:
    result = invoke("export", program.path, "-o", "again.llvq", "--json")
    document = json.loads(result.stdout)
    assert document["target"] == "cpu" and len(document["id"]) == 64
    assert "denoise" in document["checks"]


def test_a_target_is_never_guessed(invoke: Invoke, program: Typed, tmp_path: Path) -> None:
    unknown = invoke("export", program.path, "--target", "tpu")
    other = invoke("export", program.path, "--target", "sm_100a", "--numerics", "w4a8")
    assert unknown.exit_code == other.exit_code == 4
    assert "no target 'tpu'" in unknown.stderr and "cpu" in unknown.stderr
    assert "sm_100a does not compute in 'w4a8'" in other.stderr
    assert not list(tmp_path.iterdir())


def test_a_format_is_known_and_takes_its_own_options(
    invoke: Invoke, program: Typed, tmp_path: Path
) -> None:
    near = invoke("export", program.path, "--format", "onx")
    surplus = invoke("export", program.path, "--format", "onnx", "--target", "cpu")
    numerics = invoke("export", program.path, "--format", "onnx", "--numerics", "w4a8")
    boxed = invoke("export", program.path, "--dialect", "trt")
    left = invoke("export", program.path, "--format", "onnx", "--no-text-encoder")
    assert near.exit_code == surplus.exit_code == boxed.exit_code == left.exit_code == 2
    assert "--no-text-encoder means nothing to --format onnx" in left.stderr
    assert "--numerics means nothing to --format onnx" in numerics.stderr
    assert "did you mean 'onnx'?" in near.stderr
    assert "--target means nothing to --format onnx" in surplus.stderr
    assert "add --format onnx" in boxed.stderr
    assert not list(tmp_path.iterdir())


def test_a_box_is_no_program(invoke: Invoke, box: Typed) -> None:
    result = invoke("export", box.path, "-o", "other.llvq")
    assert result.exit_code == 4
    assert "this is a box, not a program" in result.stderr


def test_what_to_type_next_fits_the_box(tmp_path: Path) -> None:
    whole = {"files": {"tokenizer/tokenizer.json": {}}, "stages": {"decode": {}}}
    assert next_step(Box(tmp_path, whole, ""), Path("a b.llvq")) == (
        "next: llvq run 'a b.llvq' --prompt \"a red kite over the sea\""
    )
    assert next_step(Box(tmp_path, whole, ""), Path("m.llvq"), text_encoder=False).endswith(
        '--prompt "a red kite over the sea" --prompt-cache DIR'
    )
    bare = {"files": {}, "stages": {}}
    assert next_step(Box(tmp_path, bare, ""), Path("m.llvq")) == (
        "next: llvq run m.llvq --embeds FILE --latents-only"
    )
