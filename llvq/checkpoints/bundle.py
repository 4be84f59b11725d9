"""Find what belongs to a denoiser: VAE, text encoder and tokenizer, as the publishers name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from llvq.errors import CheckpointError

VAE_FILES = ("Wan2.2_VAE.pth", "Wan2.2_VAE.safetensors")
WAN21_VAE_FILES = ("Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors")
# The folder of a published model and the names of its VAE, by latent channels.
PUBLISHED = {
    48: (Path("wan_models/Wan2.2-TI2V-5B"), VAE_FILES),
    16: (Path("wan_models/Wan2.1-T2V-1.3B"), WAN21_VAE_FILES),
}
TEXT_FILES = (
    "models_t5_umt5-xxl-enc-bf16.pth",
    "models_t5_umt5-xxl-enc-bf16.safetensors",
)
TOKENIZER_FILES = ("google/umt5-xxl/tokenizer.json", "tokenizer.json")


@dataclass(frozen=True)
class Bundle:
    """The files of one video model. None where there is none; `notes` say what then happens."""

    dit: Path
    vae: Path | None
    text_encoder: Path | None
    tokenizer: Path | None
    notes: tuple[str, ...] = ()


def find_companions(
    dit_path: str | PathLike[str],
    channels: int = 48,
    *,
    vae: str | PathLike[str] | None = None,
    text_encoder: str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
) -> Bundle:
    """Paths given win; else the published names beside the denoiser, then in `wan_models/`.

    `channels` of the denoiser's latents decide whose names.
    Errors: CheckpointError if a path given does not exist.
    """
    dit = Path(dit_path)
    beside = dit if dit.is_dir() else dit.parent
    folder, vae_files = published_names(channels)
    folders = (beside, beside / folder)
    found_vae = _given(vae, "--vae") or _first(folders, vae_files)
    found_text = _given(text_encoder, "--text-encoder") or _first(folders, TEXT_FILES)
    found_tokenizer = _given(tokenizer, "--tokenizer") or _first(folders, TOKENIZER_FILES)
    notes = (
        (found_vae, f"no VAE found beside {dit}: the program will end at latents"),
        (found_text, f"no text encoder found beside {dit}: prompts must come as embeddings"),
        (found_tokenizer, f"no tokenizer found beside {dit}: prompts must come as token ids"),
    )
    missing = tuple(note for path, note in notes if path is None)
    return Bundle(dit, found_vae, found_text, found_tokenizer, missing)


def published_names(channels: int) -> tuple[Path, tuple[str, ...]]:
    """Folder and VAE files of the published model with these latents; Wan2.2's for others."""
    return PUBLISHED.get(channels, PUBLISHED[48])


def _given(path: str | PathLike[str] | None, option: str) -> Path | None:
    if path is None or Path(path).exists():
        return None if path is None else Path(path)
    raise CheckpointError(
        f"{option} names nothing",
        where=str(path),
        because="there is no such file or folder",
        fix=f"check the path, or leave out {option} to look beside the checkpoint",
    )


def _first(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    paths = (folder / name for folder in folders for name in names)
    return next((path for path in paths if path.is_file()), None)
