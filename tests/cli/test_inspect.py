"""`llvq inspect`: boxes, programs and checkpoints, and never a weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llvq.passes import PIPELINE
from llvq.passes.lowering import STREAMING
from tests.cli.conftest import Typed

Invoke = Callable[..., Result]


def test_a_box_in_tables(invoke: Invoke, box: Typed) -> None:
    shown = invoke("inspect", box.path).stdout
    for text in (
        "w4a4-emulated",
        "four_over_six",
        "decode_state.* (",
        "llvq.nvfp4_linear",
        "fused",
    ):
        assert text in shown


def test_a_box_as_json(invoke: Invoke, box: Typed) -> None:
    document = json.loads(invoke("inspect", box.path, "--json").stdout)
    assert document["kind"] == "box" and document["target"] == "cpu"
    stages = {stage["name"]: stage for stage in document["stages"]}
    assert {"condition", "modulate", "denoise", "refresh", "decode", "encode_text"} <= set(stages)
    assert stages["refresh"]["outputs"] == 0
    assert document["bytes"]["dit"]["codes"] == 8 * document["bytes"]["dit"]["scales"]
    assert document["bytes"]["vae"]["codes"] == 0
    names = [row["name"] for row in document["passes"]]
    assert names == [step.name for step in (*PIPELINE, *STREAMING)]


def test_no_weight_is_read(invoke: Invoke, program: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a weight file was opened")

    monkeypatch.setattr("llvq.artifact.read.safe_open", refuse)
    assert invoke("inspect", program.path).exit_code == 0


def test_the_graph_of_a_stage(invoke: Invoke, program: Typed) -> None:
    shown = invoke("inspect", program.path, "--graph", "denoise").stdout
    assert "= llvq.paged_attention(" in shown
    assert shown.rstrip().splitlines()[-1].startswith("return ")


def test_an_unknown_stage_names_the_nearest(invoke: Invoke, program: Typed) -> None:
    result = invoke("inspect", program.path, "--graph", "denose")
    assert result.exit_code == 2
    assert "did you mean 'denoise'?" in result.stderr


def test_a_checkpoint_is_recognized_by_its_tensors(invoke: Invoke, checkpoint: Path) -> None:
    kinds = {"model.pt": "denoiser", "Wan2.2_VAE.pth": "VAE"}
    kinds["models_t5_umt5-xxl-enc-bf16.pth"] = "text encoder"
    for name, kind in kinds.items():
        document = json.loads(invoke("inspect", checkpoint.parent / name, "--json").stdout)
        assert document["kind"] == kind
        assert sum(group["bytes"] for group in document["groups"].values()) > 0
    shown = invoke("inspect", checkpoint).stdout
    assert "blocks" in shown and "num_layers" in shown


def test_what_is_neither_is_refused(invoke: Invoke, checkpoint: Path) -> None:
    assert invoke("inspect", "nothing.pt").exit_code == 2
    result = invoke("inspect", checkpoint, "--graph", "denoise")
    assert result.exit_code == 2
    assert "only programs and boxes hold graphs" in result.stderr
