"""`llvq export --format onnx`, as it is typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import Result

from llvq.cli.export_onnx import next_step
from tests.cli.conftest import Typed

Invoke = Callable[..., Result]


def test_a_program_becomes_models_beside_the_user(
    invoke: Invoke, program: Typed, tmp_path: Path
) -> None:
    result = invoke("export", program.path, "--format", "onnx", "--dialect", "portable")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "model-onnx"
    assert "denoise.onnx" in result.stdout and "dialect portable, opset 23" in result.stdout
    assert "next: cd model-onnx && python -c" in result.stdout
    assert "encode_text is not exported" in result.stderr
    onnx.checker.check_model(str(folder / "decode.onnx"), full_check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model-onnx"]


def test_json_says_what_was_written_and_force_replaces_it(
    invoke: Invoke, program: Typed, tmp_path: Path
) -> None:
    words = ("export", program.path, "--format", "onnx", "-o", "out", "--json")
    first, again, forced = invoke(*words), invoke(*words), invoke(*words, "--force")
    document = json.loads(forced.stdout)
    assert first.stdout == forced.stdout
    assert document["dialect"] == "standard" and document["opset"] == 23
    assert set(document["nodes"]) >= {"denoise", "decode"}
    assert again.exit_code == 5 and "add --force" in again.stderr


def test_a_dialect_is_known_and_is_told_when_it_cannot_say_the_recipe(
    invoke: Invoke, program: Typed, tmp_path: Path
) -> None:
    words = ("export", program.path, "--format", "onnx", "--dialect")
    near, refused = invoke(*words, "portabel"), invoke(*words, "trt")
    assert near.exit_code == 2 and "did you mean 'portable'?" in near.stderr
    assert refused.exit_code == 4 and 'activation_rule = "max"' in refused.stderr
    assert not list(tmp_path.iterdir())


def test_without_onnx_it_says_what_to_install(
    invoke: Invoke, program: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = invoke("export", program.path, "--format", "onnx")
    assert result.exit_code == 4 and "pip install 'llvq[onnx]'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(
    invoke: Invoke, program: Typed, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    result = invoke("export", program.path, "--format", "onnx", "-o", "out", "--force")
    assert result.exit_code == 5 and "not a folder of ONNX models" in result.stderr
    assert (tmp_path / "out" / "thesis.txt").read_text() == "x"


def test_what_to_type_next_is_for_the_dialect() -> None:
    step = next_step(Path("a b"), "trt", ["condition", "denoise"])
    assert step == "next: cd 'a b' && trtexec --onnx=denoise.onnx --stronglyTyped"
    assert "decode.onnx" in next_step(Path("m"), "standard", ["decode"])
