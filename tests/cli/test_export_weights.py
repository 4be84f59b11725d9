"""`llvq export --format modelopt` and others, typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from typer.testing import Result

from tests.cli.conftest import Typed

Invoke = Callable[..., Result]


def test_a_file_with_what_to_do_next(invoke: Invoke, program: Typed, tmp_path: Path) -> None:
    result = invoke("export", program.path, "--format", "comfyui")
    assert result.exit_code == 0, result.stderr
    path = tmp_path / f"{program.path.stem}.comfyui.safetensors"
    assert f"{path.name}   ComfyUI NVFP4: 10 linears packed, 6 in bf16" in result.stdout
    assert f"next: cp {path.name} ComfyUI/models/diffusion_models/" in result.stdout
    assert load_file(path)["blocks.0.ffn.0.weight_scale_2"].shape == ()


def test_json_says_the_same(invoke: Invoke, program: Typed, tmp_path: Path) -> None:
    result = invoke("export", program.path, "--format", "modelopt", "-o", "out", "--json")
    document = json.loads(result.stdout)
    assert document["path"] == "out" and document["format"] == "modelopt"
    assert len(document["packed"]) == 10 and "proj_out" in document["plain"]
    assert "activations stay in BF16" in document["notes"][0]
    assert (tmp_path / "out" / "config.json").is_file()


def test_what_is_there_is_kept_unless_forced(
    invoke: Invoke, program: Typed, tmp_path: Path
) -> None:
    (tmp_path / "m.pt").write_text("mine")
    words = ("export", program.path, "--format", "longlive-4o6", "-o", "m.pt")
    assert invoke(*words).exit_code == 5 and (tmp_path / "m.pt").read_text() == "mine"
    assert invoke(*words, "--force").exit_code == 0
    assert (tmp_path / "m.pt").read_bytes()[:2] == b"PK"


def test_what_a_tool_cannot_read_is_refused(invoke: Invoke, program: Typed, tmp_path: Path) -> None:
    result = invoke("export", program.path, "--format", "lightx2v")
    target = invoke("export", program.path, "--format", "comfyui", "--target", "cpu")
    assert result.exit_code == target.exit_code == 2
    assert "needs static input scales" in result.stderr
    assert "--target means nothing to --format comfyui" in target.stderr
    assert not list(tmp_path.iterdir())
