from __future__ import annotations

from pathlib import Path

import pytest

from llvq.checkpoints.bundle import Bundle, denoiser_in, find_companions
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


def pipeline(folder: Path) -> Path:
    for part in ("transformer", "vae", "text_encoder"):
        touch(folder / part / "config.json")
    touch(folder / "tokenizer" / "tokenizer.json")
    touch(folder / "model_index.json")
    return folder


@pytest.mark.parametrize("named", [".", "transformer", "transformer/m.safetensors"])
def test_a_pipeline_of_diffusers_has_all_parts(tmp_path: Path, named: str) -> None:
    folder = pipeline(tmp_path / "Wan2.2-TI2V-5B-Diffusers")
    touch(folder / "transformer/m.safetensors")
    bundle = find_companions(folder / named)
    dit = folder / ("transformer" if named == "." else named)
    parts = (folder / "vae", folder / "text_encoder", folder / "tokenizer/tokenizer.json")
    assert bundle == Bundle(dit, *parts)


def test_folders_that_only_have_these_names_are_not_looked_into(tmp_path: Path) -> None:
    for name in ("vae", "text_encoder", "transformer"):
        touch(tmp_path / name / VAE)
    assert denoiser_in(tmp_path) == tmp_path
    assert find_companions(tmp_path / "m.pt").vae is None


@pytest.mark.parametrize(
    "other", ["transformer_2/config.json", "diffusion_pytorch_model-00001-of-00003.safetensors"]
)
def test_two_denoisers_in_one_folder(tmp_path: Path, other: str) -> None:
    touch(pipeline(tmp_path) / other)
    with pytest.raises(CheckpointError, match="more than one denoiser") as caught:
        denoiser_in(tmp_path)
    assert other.split("/")[0] in str(caught.value)


def test_published_companions_in_the_folder_of_a_pipeline_are_no_denoiser(tmp_path: Path) -> None:
    touch(pipeline(tmp_path) / "models_t5_umt5-xxl-enc-bf16.safetensors")
    assert denoiser_in(tmp_path) == tmp_path / "transformer"


def test_two_of_a_kind_side_by_side_are_asked_about(tmp_path: Path) -> None:
    one, other = touch(tmp_path / VAE), touch(tmp_path / "Wan2.2_VAE.safetensors")
    with pytest.raises(CheckpointError, match="--vae may be one of 2") as caught:
        find_companions(tmp_path / "m.pt")
    assert caught.value.because == f"there are {one} and {other}"
    assert find_companions(tmp_path / "m.pt", vae=other).vae == other


@pytest.mark.parametrize("folder", ["google/umt5-xxl", "tokenizer", "."])
def test_a_sentencepiece_model_alone_says_how_to_convert_it(tmp_path: Path, folder: str) -> None:
    raw = touch(tmp_path / folder / "spiece.model")
    for given in (None, raw, raw.parent):
        with pytest.raises(CheckpointError, match=r"not as tokenizer\.json") as caught:
            find_companions(tmp_path / "m.pt", tokenizer=given)
        assert str(raw) in str(caught.value) and "save_pretrained" in str(caught.value)
    made = touch(raw.parent / "tokenizer.json")
    for given in (None, raw, raw.parent):
        assert find_companions(tmp_path / "m.pt", tokenizer=given).tokenizer == made
