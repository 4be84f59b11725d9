from __future__ import annotations

from pathlib import Path

import pytest

from llvq.checkpoints.bundle import Bundle, find_companions
from llvq.errors import CheckpointError

VAE, TEXT = "Wan2.2_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("folder", [".", "wan_models/Wan2.2-TI2V-5B"])
def test_companions_are_found_by_their_published_names(tmp_path: Path, folder: str) -> None:
    dit = touch(tmp_path / "model_bf16.pt")
    vae, text = touch(tmp_path / folder / VAE), touch(tmp_path / folder / TEXT)
    tokenizer = touch(tmp_path / folder / "google/umt5-xxl/tokenizer.json")
    assert find_companions(dit) == Bundle(dit, vae, text, tokenizer)


def test_sixteen_channels_are_wan21_wherever_both_are(tmp_path: Path) -> None:
    dit = touch(tmp_path / "self_forcing_dmd.pt")
    touch(tmp_path / VAE)
    touch(tmp_path / "wan_models/Wan2.2-TI2V-5B" / VAE)
    assert find_companions(dit, 16).vae is None
    folder = tmp_path / "wan_models/Wan2.1-T2V-1.3B"
    vae, text = touch(folder / "Wan2.1_VAE.pth"), touch(folder / TEXT)
    found = find_companions(dit, 16)
    assert (found.vae, found.text_encoder) == (vae, text)
    assert find_companions(dit).vae == tmp_path / VAE


def test_a_folder_is_looked_into(tmp_path: Path) -> None:
    vae = touch(tmp_path / "Wan2.2_VAE.safetensors")
    assert find_companions(tmp_path).vae == vae


def test_beside_wins_over_wan_models_and_a_given_path_over_both(tmp_path: Path) -> None:
    near, mine = touch(tmp_path / VAE), touch(tmp_path / "mine.pth")
    touch(tmp_path / "wan_models/Wan2.2-TI2V-5B" / VAE)
    assert find_companions(tmp_path / "m.pt").vae == near
    assert find_companions(tmp_path / "m.pt", vae=mine).vae == mine


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bundle = find_companions(tmp_path / "m.pt")
    assert (bundle.vae, bundle.text_encoder, bundle.tokenizer) == (None, None, None)
    assert len(bundle.notes) == 3
    assert "end at latents" in bundle.notes[0]


def test_a_given_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--text-encoder names nothing"):
        find_companions(tmp_path / "m.pt", text_encoder=tmp_path / "no.pth")
