"""`llvq quantize`: the whole flow, the looks into the compiler, and every way to be refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from tests.cli.conftest import SIZE, Typed

Invoke = Callable[..., Result]


def test_model_alone_does_something_sensible(program: Typed) -> None:
    assert (program.path / "manifest.json").is_file()
    for name in ("Wan2.2_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "tokenizer.json"):
        assert name in program.stderr
    assert "split-stages" in program.stdout
    assert "linears in NVFP4            10" in program.stdout
    assert "kept by *head.head          1" in program.stdout
    assert "x smaller)" in program.stdout
    assert "next: llvq export model.nvfp4" in program.stdout
    assert sorted(os.listdir(program.path.parent))[-1] == "model.nvfp4"


def test_json_says_what_the_tables_say(invoke: Invoke, denoiser: Path, tmp_path: Path) -> None:
    result = invoke("quantize", denoiser, *SIZE, "--json", "--disable", "fuse-gelu-quantize")
    document = json.loads(result.stdout)
    names = [row["name"] for row in document["passes"]]
    assert names[0] == "canonicalize" and names[-1] == "split-stages"
    assert "fuse-gelu-quantize" not in names
    assert document["weights"]["quantized"] == 10
    assert document["weights"]["unused_globs"] == []
    assert document["weights"]["bytes_after"] < document["weights"]["bytes_before"]
    assert any("no VAE found" in note for note in document["notes"])
    assert (tmp_path / document["program"] / "manifest.json").is_file()


@pytest.fixture
def lora(denoiser: Path, tmp_path: Path) -> Path:
    """A LoRA of rank 2 in numbers that add up without rounding, and `merged/` with it merged."""
    content = torch.load(denoiser, weights_only=True)
    generator, name = content["generator"], "model.blocks.0.ffn.0.weight"
    rows, columns = generator[name].shape
    generator[name] = torch.randint(-8, 8, (rows, columns)).bfloat16()
    torch.save(content, tmp_path / "base.pt")
    b, a = torch.zeros(rows, 2), torch.zeros(2, columns)
    b[1, 0] = b[3, 1] = a[0, 5] = a[1, 6] = 4.0
    peft = "base_model.model.model.blocks.0.ffn.0"
    tensors = {f"{peft}.lora_A.weight": a, f"{peft}.lora_B.weight": b}
    torch.save({"generator_lora": tensors, "critic_lora": {}, "step": 5000}, tmp_path / "lora.pt")
    generator[name][1, 5] += 32
    generator[name][3, 6] += 32
    (tmp_path / "merged").mkdir()
    torch.save(content, tmp_path / "merged/base.pt")
    for folder in (tmp_path, tmp_path / "merged"):
        shutil.copy(denoiser.parent / "config.json", folder)
    return tmp_path / "lora.pt"


def test_a_lora_is_merged_first_and_the_manifest_says_so(invoke: Invoke, lora: Path) -> None:
    typed = ("quantize", "base.pt", *SIZE, "--lora", lora, "--lora-alpha", "4", "-o", "a.nvfp4")
    result = invoke(*typed)
    assert result.exit_code == 0, result.stderr
    assert "recognised: LoRA of rank 2 and alpha 4 over 1 linears" in result.stderr
    assert invoke("quantize", "merged/base.pt", *SIZE, "-o", "b.nvfp4").exit_code == 0
    one, other = (
        json.loads((lora.parent / name / "manifest.json").read_text())
        for name in ("a.nvfp4", "b.nvfp4")
    )
    (record,) = one["lora"]
    assert other["lora"] == [] and record.pop("sha256")
    assert record == {"name": "lora.pt", "rank": 2, "alpha": 4.0, "layers": 1}
    assert one["files"] == other["files"]  # to the byte
    shown = invoke("inspect", "a.nvfp4")
    assert "lora.pt (rank 2, alpha 4, 1 linears)" in shown.stdout


def test_a_lora_is_refused_twice_and_alone(invoke: Invoke, lora: Path) -> None:
    twice = invoke("quantize", "base.pt", *SIZE, "--lora", lora, "--lora", lora)
    assert twice.exit_code == 2 and "merged twice" in twice.stderr
    alone = invoke("quantize", "lora.pt", *SIZE)
    assert alone.exit_code == 2
    assert "llvq quantize BASE --lora lora.pt" in alone.stderr.replace("\n", "")
    alphas = invoke("quantize", "base.pt", *SIZE, "--lora-alpha", "4")
    assert alphas.exit_code == 2 and "0 LoRAs were given, and 1 alphas" in alphas.stderr


def test_stopping_early_prints_the_ir_and_writes_nothing(
    invoke: Invoke, denoiser: Path, tmp_path: Path
) -> None:
    stop = ("--stop-after", "raise-attention", "--print-ir-after", "raise-attention")
    result = invoke("quantize", denoiser, *SIZE, *stop, "--dump", "ir")
    assert result.exit_code == 0
    assert "// IR after raise-attention" in result.stdout
    assert "= llvq.attention(" in result.stdout
    assert "no program was written" in result.stderr
    assert os.listdir(tmp_path) == ["ir"]
    assert sorted(os.listdir(tmp_path / "ir")) == ["01-canonicalize.txt", "02-raise-attention.txt"]


def test_a_limited_program_is_written(invoke: Invoke, denoiser: Path, tmp_path: Path) -> None:
    result = invoke("quantize", denoiser, *SIZE, "--limit", "15", "--json", "-o", "limited")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["rewrites"] == 15
    stopped = [sum(book["stopped"] for book in row["books"]) for row in document["passes"]]
    assert sum(stopped) > 0 and stopped[-1] == 0
    assert invoke("inspect", "limited", "--json").exit_code == 0


@pytest.mark.parametrize("option", ["--disable", "--stop-after", "--print-ir-after"])
def test_an_unknown_pass_names_the_nearest(invoke: Invoke, denoiser: Path, option: str) -> None:
    result = invoke("quantize", denoiser, option, "fuse-linaer")
    assert result.exit_code == 2
    assert "no pass 'fuse-linaer'" in result.stderr
    assert "did you mean 'fuse-linear'?" in result.stderr


def test_a_pass_that_makes_a_level_cannot_be_disabled(invoke: Invoke, denoiser: Path) -> None:
    result = invoke("quantize", denoiser, "--disable", "canonicalize")
    assert result.exit_code == 2
    assert "canonicalize cannot be disabled" in result.stderr


def test_what_is_no_checkpoint_is_refused_in_four_lines(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    result = invoke("quantize", "notes.txt")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["error[checkpoint]:", "at", "because", "fix"]
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_half_a_size_is_refused(invoke: Invoke, denoiser: Path) -> None:
    result = invoke("quantize", denoiser, "--height", "64")
    assert result.exit_code == 2
    assert "add --width" in result.stderr


def test_an_existing_output_is_not_overwritten_unless_asked_for(
    invoke: Invoke, denoiser: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.nvfp4").mkdir()
    (tmp_path / "model.nvfp4" / "manifest.json").touch()
    result = invoke("quantize", denoiser)
    assert result.exit_code == 5
    assert "add --force" in result.stderr


def test_force_replaces_a_program_but_nothing_else(
    invoke: Invoke, denoiser: Path, tmp_path: Path
) -> None:
    (tmp_path / "taxes").mkdir()
    (tmp_path / "taxes" / "2025.txt").write_text("do not lose")
    result = invoke("quantize", denoiser, *SIZE, "-o", "taxes", "--force")
    assert result.exit_code == 5
    assert "not a program or box" in result.stderr
    assert os.listdir(tmp_path / "taxes") == ["2025.txt"]


def test_a_missing_output_folder_is_found_out_before_the_work(
    invoke: Invoke, denoiser: Path
) -> None:
    result = invoke("quantize", denoiser, "-o", "nowhere/model.nvfp4")
    assert result.exit_code == 5
    assert "mkdir -p" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_output_is_found_out_before_the_work(
    invoke: Invoke, denoiser: Path, tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    result = invoke("quantize", denoiser, "-o", "locked/model.nvfp4")
    assert result.exit_code == 5
    assert "you may not write" in result.stderr


def test_a_nan_weight_leaves_nothing_behind(invoke: Invoke, denoiser: Path, tmp_path: Path) -> None:
    state = torch.load(denoiser, weights_only=True)
    state["generator"]["model.blocks.0.ffn.0.weight"][3, 5] = float("nan")
    folder = tmp_path / "broken"
    folder.mkdir()
    torch.save(state, folder / "model.pt")
    (folder / "config.json").write_bytes((denoiser.parent / "config.json").read_bytes())
    result = invoke("quantize", "broken/model.pt", *SIZE, "-o", "out.nvfp4")
    assert result.exit_code == 2
    assert "blocks.0.ffn.0.weight holds a NaN" in result.stderr
    assert os.listdir(tmp_path) == ["broken"]


def test_a_dump_that_cannot_be_written_is_refused_at_once(
    invoke: Callable[..., Result], denoiser: Path
) -> None:
    result = invoke("quantize", denoiser, *SIZE, "--dump", "no/such/folder")
    assert result.exit_code == 5 and "has no folder to go to" in result.stderr
