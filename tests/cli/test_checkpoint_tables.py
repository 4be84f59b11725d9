"""What `llvq inspect` says of a file of tensors, known or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llvq.cli.checkpoint_tables import describe, show
from llvq.errors import CheckpointError


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Tensors of no model that llvq knows."""
    path = tmp_path / "stranger.safetensors"
    tensors = {
        "unet.up.weight": torch.zeros(4, 8),
        "unet.up.bias": torch.zeros(4, dtype=torch.bfloat16),
        "steps": torch.zeros(3, dtype=torch.int64),
    }
    save_file(tensors, path)
    return path


def test_a_denoiser_has_a_kind_a_config_and_groups(denoiser: Path) -> None:
    found = describe(denoiser)
    assert (found["kind"], found["not"], found["path"]) == ("denoiser", {}, str(denoiser))
    assert found["config"]["num_layers"] == 1
    assert found["groups"]["blocks"]["dtypes"] == "bfloat16"
    stored = torch.load(denoiser, weights_only=True)["generator"]
    assert sum(group["tensors"] for group in found["groups"].values()) == len(stored)
    total = sum(group["bytes"] for group in found["groups"].values())
    assert total == sum(tensor.nbytes for tensor in stored.values())


def test_a_stranger_is_listed_with_why_it_is_nothing_known(stranger: Path) -> None:
    found = describe(stranger)
    assert found["kind"] is None and found["config"] is None
    assert set(found["not"]) == {"denoiser", "VAE", "text encoder"}
    assert all(found["not"].values())
    groups = {name: tuple(group.values()) for name, group in found["groups"].items()}
    assert {name: (set(d.split(", ")), n, b) for name, (d, n, b) in groups.items()} == {
        "unet": ({"float32", "bfloat16"}, 2, 136),
        "steps": ({"int64"}, 1, 24),
    }


def test_a_stranger_in_tables(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(describe(stranger))
    shown = capsys.readouterr().out
    assert "not known" in shown and "no text encoder" in shown and "160 B" in shown


def test_long_statistics_are_for_json_and_notes_for_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(
        {
            "path": "vae.pth",
            "kind": "VAE",
            "not": {},
            "config": {"dim_mult": (1, 2, 4, 4), "latent_mean": (0.25,) * 48},
            "notes": ["the statistics are those of Wan2.2"],
            "groups": {"encoder": {"dtypes": "bfloat16", "tensors": 7, "bytes": 2048}},
        }
    )
    shown = capsys.readouterr()
    assert "(1, 2, 4, 4)" in shown.out and "latent_mean" not in shown.out
    assert shown.out.splitlines()[-1].split() == ["encoder", "bfloat16", "7", "2.0", "KiB"]
    assert shown.err == "note: the statistics are those of Wan2.2\n"


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError):
        describe(tmp_path / "notes.txt")
