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
# diffusers writes one into the folder of each part.
CONFIG = "config.json"
TOKENIZER, SENTENCEPIECE = "tokenizer.json", "spiece.model"
TOKENIZER_FOLDERS = ("google/umt5-xxl", ".")


@dataclass(frozen=True)
class Bundle:
    """The files of one video model. None where there is none; `notes` say what then happens."""

    dit: Path
    vae: Path | None
    text_encoder: Path | None
    tokenizer: Path | None
    notes: tuple[str, ...] = ()


def denoiser_in(path: Path) -> Path:
    """The denoiser of a pipeline that diffusers wrote, if `path` is its folder; else `path`.

    Raises CheckpointError if the folder holds more than one.
    """
    inner = path / "transformer"
    if not (inner / CONFIG).is_file():
        return path
    second = path / "transformer_2"
    others = [second] if (second / CONFIG).is_file() else []
    known = (*VAE_FILES, *WAN21_VAE_FILES, *TEXT_FILES)
    others += [file for file in sorted(path.glob("*.safetensors")) if file.name not in known]
    if others:
        raise CheckpointError(
            f"{path.name} holds more than one denoiser",
            where=str(path),
            because=f"there are {inner.name}/ and {others[0].name}",
            fix=f"name the one that you mean, such as {inner}",
        )
    return inner


def find_companions(
    dit_path: str | PathLike[str],
    channels: int = 48,
    *,
    vae: str | PathLike[str] | None = None,
    text_encoder: str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
) -> Bundle:
    """Paths given win; else the published names beside the denoiser, then in `wan_models/`.

    `channels` of the denoiser's latents decide whose names. Beside the denoiser of a pipeline that
    diffusers wrote are also its other folders.
    Errors: CheckpointError if a path given does not exist, two parts of one kind lie side by side,
    or there is a tokenizer, but not in a form that llvq reads.
    """
    dit = denoiser_in(Path(dit_path))
    beside = dit if dit.is_dir() else dit.parent
    published, vae_files = published_names(channels)
    pipeline = beside.parent if beside.name == "transformer" else beside
    folders = (beside, beside / published)
    found_vae = _given(vae, "--vae") or _find(folders, vae_files, pipeline / "vae", "--vae")
    found_text = _given(text_encoder, "--text-encoder") or _find(
        folders, TEXT_FILES, pipeline / "text_encoder", "--text-encoder"
    )
    found_tokenizer = _given_tokenizer(tokenizer) or _find_tokenizer(folders, pipeline)
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


def _find(folders: Sequence[Path], names: Sequence[str], part: Path, option: str) -> Path | None:
    """The one file of these names in the first folder that has any; `part` lies in the first."""
    for number, folder in enumerate(folders):
        found = [folder / name for name in names if (folder / name).is_file()]
        found += [part] if number == 0 and (part / CONFIG).is_file() else []
        if len(found) > 1:
            raise CheckpointError(
                f"{option} may be one of {len(found)}",
                where=str(folder),
                because=f"there are {' and '.join(str(path) for path in found)}",
                fix=f"name the one that you mean: {option} {found[0]}",
            )
        if found:
            return found[0]
    return None


def _given_tokenizer(path: str | PathLike[str] | None) -> Path | None:
    given = _given(path, "--tokenizer")
    if given is None:
        return None
    file = given / TOKENIZER if given.is_dir() else given
    if file.suffix == ".model" or (given.is_dir() and (given / SENTENCEPIECE).is_file()):
        return _converted(file.with_name(TOKENIZER))
    return file


def _find_tokenizer(folders: Sequence[Path], pipeline: Path) -> Path | None:
    places = (*(folder / name for folder in folders for name in TOKENIZER_FOLDERS),
              pipeline / "tokenizer")  # fmt: skip
    if found := next((p / TOKENIZER for p in places if (p / TOKENIZER).is_file()), None):
        return found
    raw = next((place for place in places if (place / SENTENCEPIECE).is_file()), None)
    return None if raw is None else _converted(raw / TOKENIZER)


def _converted(file: Path) -> Path:
    """tokenizer.json, which must be there. Raises CheckpointError that says how to make it."""
    if file.is_file():
        return file
    folder = str(file.parent)
    raise CheckpointError(
        "the tokenizer is there, but not as tokenizer.json",
        where=str(file.parent / SENTENCEPIECE),
        because="llvq reads what the tokenizers library writes, and not sentencepiece",
        fix='pip install sentencepiece protobuf; python -c "'
        "from transformers import T5TokenizerFast; "
        f'T5TokenizerFast.from_pretrained({folder!r}).save_pretrained({folder!r})"',
    )
