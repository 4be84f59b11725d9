"""The prompts of a calibration: a file or the builtin ones, through the text encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from llvq.checkpoints.model import VideoModel
from llvq.errors import CheckpointError, SessionError
from llvq.models.text import TextEncoder
from llvq.runtime.inputs import read_tensor
from llvq.runtime.prompts import PromptTokenizer
from llvq.sources import TensorSource

# Faces and hands, water, night, a moving camera: what moves activations of video models apart.
BUILTIN = (
    "A close-up of an old man laughing, wrinkles around his eyes, soft window light.",
    "Waves break over black rocks at sunset, spray flies towards the camera.",
    "A neon-lit street at night in the rain, people with umbrellas pass, the camera follows one.",
    "A red kite flies over a green hill, the camera rises with it above the clouds.",
)
MAX_PROMPTS = 10_000
TENSORS = ".safetensors"
TENSOR = "prompt_embeds"  # as `llvq run --embeds` reads


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """One prompt per line; empty lines are left out. None gives the builtin list.

    Raises SessionError for a file that cannot be read or holds none.
    """
    if path is None:
        return BUILTIN
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SessionError(
            f"{path.name} is not a file of prompts",
            where=str(path),
            because=str(error),
            fix="write one prompt per line, in UTF-8",
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise SessionError(
            f"{path.name} holds {len(prompts)} prompts",
            where=str(path),
            because=f"calibration takes 1 to {MAX_PROMPTS}, one per line",
            fix="write one prompt per line",
        )
    return prompts


def read_embeds(path: Path, model: VideoModel) -> Tensor:
    """prompt_embeds [videos, text_len, text_dim] of a safetensors file. Raises SessionError."""
    embeds, dit = read_tensor(path, TENSOR), model.config.dit
    wanted = (dit.text_len, dit.text_dim)
    if embeds.dim() != 3 or tuple(embeds.shape[1:]) != wanted or not len(embeds):
        raise SessionError(
            f"{TENSOR} has shape {tuple(embeds.shape)}",
            where=str(path),
            because=f"this model takes [videos, {wanted[0]}, {wanted[1]}]",
            fix="encode one prompt per video with the text encoder of this model",
        )
    return embeds.to(torch.bfloat16)


def encode(
    model: VideoModel, prompts: tuple[str, ...], device: str, *, done: Callable[[int], None]
) -> Tensor:
    """Embeddings bf16 [prompts, text_len, text_dim]; the encoder is in memory only meanwhile.

    `done` is told how many are encoded. Raises CheckpointError without encoder or tokenizer,
    SessionError for an empty prompt.
    """
    check_encoder(model)
    assert model.bundle.tokenizer is not None
    tokenizer = PromptTokenizer(model.bundle.tokenizer, model.config.dit.text_len)
    tokens = [tokenizer.encode(prompt) for prompt in prompts]
    encoder, rows = _encoder(model, device), []
    for item in tokens:
        with torch.no_grad():
            rows.append(encoder(item.ids.to(device), item.mask.to(device)).cpu())
        done(len(rows))
    return torch.cat(rows)


def check_encoder(model: VideoModel) -> None:
    """Raises CheckpointError if prompts cannot be embedded."""
    missing = {"text encoder": model.config.text, "tokenizer": model.bundle.tokenizer}
    for part, found in missing.items():
        if found is None:
            raise CheckpointError(
                f"there is no {part} to calibrate with",
                where=str(model.bundle.dit),
                because="prompts must become embeddings",
                fix=f"name it with --{part.replace(' ', '-')}, or pass embeddings: "
                f"--calibrate-prompts FILE{TENSORS} with a tensor {TENSOR}",
            )


def _encoder(model: VideoModel, device: str) -> TextEncoder:
    assert model.config.text is not None
    with torch.device("meta"):
        encoder = TextEncoder(model.config.text)
    encoder.load_state_dict(loaded(model.source, "text.", device), assign=True)
    return encoder.eval()


def loaded(source: TensorSource, part: str, device: str) -> dict[str, Tensor]:
    """The tensors of one part of a model in bf16, copies of the source's, without the prefix."""
    return {
        name.removeprefix(part): source.read(name).to(device, torch.bfloat16, copy=True)
        for name in source.names()
        if name.startswith(part)
    }
