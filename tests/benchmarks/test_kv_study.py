"""The command: what it is given, what it refuses, and that the files say how they were made."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from benchmarks import kv_study
from benchmarks.kv_study import KV, main
from llvq.calibrate import modelopt_backend
from llvq.checkpoints.random import tiny_config, write_random_checkpoint
from llvq.models.config import ModelConfig


def small() -> ModelConfig:
    """One layer, no image encoder, and frames of 32 x 32 pixels."""
    config = tiny_config()
    dit = replace(config.dit, dim=128, ffn_dim=128, num_heads=1, num_layers=1)
    vae = replace(config.vae, dim=8, dec_dim=8, num_res_blocks=1)
    stream = replace(config.stream, first_frame_image=False)
    return replace(config, dit=dit, stream=stream, vae=vae, latent_hw=(2, 2))


def test_a_study_is_written_with_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "model", small(), seed=0)
    few = replace(KV, variants=KV.variants[-1:])
    monkeypatch.setattr(kv_study, "KV", few)
    given = [str(checkpoint), "--seeds", "2", "--chunks", "2", "--steps", "1",
             "--jobs", "2", "--out", str(tmp_path / "out"), "--name", "mine"]  # fmt: skip
    assert main(given) == 0
    text = (tmp_path / "out" / "mine.txt").read_text()
    assert capsys.readouterr().out == text + "\n"
    assert "$ python -m benchmarks.kv_study" in text and "weights are random" in text
    assert "32x32, 2 chunks" in text
    document = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert document["random_weights"] and set(document["versions"]) == {"llvq", "torch", "python"}
    plain, int2 = document["rows"]
    assert plain["smaller"] == 1 and int2["smaller"] == pytest.approx(16 / 2.5)
    assert [sample["seed"] for sample in int2["samples"]] == [0, 1]
    assert set(int2["samples"][0]["chunks"][1]) == {
        "sqnr_db", "psnr_db", "ssim"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--chunks", "1"], "has nothing to judge"),
        (["--device", "cuda"], "torch sees no GPU"),
        (["nowhere.pt"], "nowhere.pt"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_sentence(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["--out", str(file)]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_a_calibrated_row_needs_modelopt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(modelopt_backend, "version", no_such_package)
    assert main(["--weights", "--out", str(tmp_path)]) == 2
    assert "modelopt" in capsys.readouterr().err.lower() and not list(tmp_path.iterdir())


def no_such_package(name: str) -> str:
    raise PackageNotFoundError(name)
