"""`llvq export --format modelopt` and others, typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import Result

from llvq.calibrate.facts_file import dump_facts
from llvq.calibrate.identity import checkpoint_digest
from llvq.checkpoints.model import open_model
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


def test_a_calibrated_program_leaves_and_returns(
    invoke: Invoke, denoiser: Path, tmp_path: Path
) -> None:
    """Facts through --calibration, out as ModelOpt's, in again, and out: the same files."""
    facts = facts_for(denoiser)
    made = {"checkpoint": checkpoint_digest(open_model(denoiser).source, "dit.")}
    (tmp_path / "calibration.safetensors").write_bytes(dump_facts(facts, made))
    words = ("quantize", denoiser, "--calibration", "calibration.safetensors")
    assert (done := invoke(*words, "-o", "a.nvfp4")).exit_code == 0, done.stderr
    first = invoke("export", "a.nvfp4", "--format", "modelopt", "-o", "a")
    assert first.exit_code == 0, first.stderr
    assert "9 linears multiply their input by a pre_quant_scale" in " ".join(first.stderr.split())
    assert (done := invoke("quantize", "a", "-o", "b.nvfp4")).exit_code == 0, done.stderr
    assert (done := invoke("export", "b.nvfp4", "--format", "modelopt", "-o", "b")).exit_code == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "diffusion_pytorch_model.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    refused = invoke("export", "a.nvfp4", "--format", "comfyui")
    assert refused.exit_code == 2 and "low-rank branches of 10 linears" in refused.stderr


def facts_for(checkpoint: Path) -> dict[str, Tensor]:
    """Factors and branches of every linear of the blocks, each its own."""
    source, found = open_model(checkpoint).source, {}
    random = torch.Generator().manual_seed(1)
    for name in source.names():
        shape, layer = source.spec(name).shape, name.removesuffix(".weight")
        if ".blocks." in name and name.endswith(".weight") and len(shape) == 2:
            found[f"{layer}.input_scale"] = torch.tensor(0.003)
            found[f"{layer}.pre_quant_scale"] = torch.rand(shape[1], generator=random) + 0.5
            found[f"{layer}.lora_down"] = torch.randn(4, shape[1], generator=random) * 0.1
            found[f"{layer}.lora_up"] = torch.randn(shape[0], 4, generator=random) * 0.1
    return found
