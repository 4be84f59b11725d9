"""`llvq compare` from a shell, on a denoiser without VAE: latents only, quick to compile."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llvq.backends.base import CPU
from llvq.box import export_box, write_program
from llvq.checkpoints.model import open_model
from llvq.checkpoints.random import write_random_checkpoint
from llvq.cli.compare import compare
from llvq.cli.main import Commands
from llvq.compiler import compile_model
from llvq.models.config import DitConfig, ModelConfig, StreamConfig, TextConfig
from llvq.recipe import BF16, NVFP4, Recipe
from llvq.runtime.load import open_checked

CONFIG = ModelConfig(
    dit=DitConfig(dim=64, ffn_dim=128, num_heads=1, num_layers=1, text_dim=32, text_len=64),
    stream=StreamConfig(frames_per_chunk=1, window_frames=3, sink_frames=1, steps=2),
    vae=None,
    text=TextConfig(
        vocab_size=320, dim=32, attn_dim=32, ffn_dim=64, num_heads=1, num_layers=1, num_buckets=8
    ),
    latent_hw=(4, 6),
)


@dataclass(frozen=True)
class Files:
    checkpoint: str
    program: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make(tmp_path_factory.mktemp("model"), NVFP4)


def make(folder: Path, recipe: Recipe) -> Files:
    checkpoint = write_random_checkpoint(folder, CONFIG, seed=0)
    model = open_model(checkpoint, size=(64, 96))
    compiled, program = compile_model(model.config, recipe), folder / "model.nvfp4"
    write_program(compiled, model.source, program, tokenizer=model.bundle.tokenizer)
    return Files(str(checkpoint), str(program))


def invoke(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.command()(compare)
    app.command()(_another)
    result = CliRunner().invoke(app, ["compare", *args])
    return result.exit_code, result.stdout, result.stderr


def _another() -> None:
    """With one command alone, typer would not ask for its name."""


def test_prints_every_table_and_writes_the_report(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "report"
    code, text, notes = invoke(files.checkpoint, files.program, "--frames", "-o", str(out))
    assert code == 0, notes
    for title in ("Passes of", "Graphs", "Fused and", "Bytes of", "by kind", "The worst", "Chunks"):
        assert title in text
    assert "latents are compared, frames are not" in text
    assert "no number here" in text  # the config says that the weights are random
    assert str(out / "report.html") in notes.replace("\n", "")
    document = json.loads((out / "report.json").read_text())
    runs = ("other_seed", "free_running", "noise_floor")
    ceiling, free, floor = (document["summary"][run]["worst_db"] for run in runs)
    assert ceiling < free < floor
    code, _, notes = invoke(files.checkpoint, files.program, "-o", str(out))
    assert code == 5 and "--force" in notes


def test_json_of_a_box_is_all_of_stdout(files: Files, tmp_path: Path) -> None:
    args = ("--json", "--chunks", "2", "--steps", "1", "--seed", "3", "--prompt", "a red kite")
    box = tmp_path / "model.llvq"
    export_box(open_checked(files.program), CPU, box)
    code, text, notes = invoke(files.checkpoint, str(box), *args)
    assert code == 0, notes
    document = json.loads(text)
    assert document["measured"]["target"] == "cpu"
    assert document["measured"]["video"]["prompts"] == ["a red kite"]
    assert len(document["chunks"]["free_running"]) == 2
    assert "psnr_db" not in document["chunks"]["free_running"][0]
    # one step and the refresh, for each chunk
    assert {layer["calls"] for layer in document["layers"] if "ffn" in layer["name"]} <= {2, 4}


def test_another_checkpoint_is_four_lines(files: Files, tmp_path: Path) -> None:
    other = write_random_checkpoint(tmp_path, CONFIG, seed=1)
    code, text, notes = invoke(str(other), files.program)
    assert code == 2 and not text
    assert "made from another checkpoint" in notes
    assert len(notes.strip().splitlines()) == 4


def test_a_bf16_program_differs_nowhere_from_its_checkpoint(tmp_path: Path) -> None:
    same = make(tmp_path, BF16)
    args = ("--json", "--chunks", "2", "-o", str(tmp_path / "report"))
    code, text, notes = invoke(same.checkpoint, same.program, *args)
    assert code == 0, notes
    document = json.loads(text)
    assert document["layers"] == [] and document["structure"]["changed"] == {}
    for run in document["chunks"].values():
        assert [row["sqnr_db"] for row in run] == ["inf", "inf"]
    assert document["bytes"]["total"]["ratio"] == 1.0
