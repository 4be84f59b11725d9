"""Tensors in: noise and prompt embeddings from safetensors files, in place of seed and prompts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llvq.errors import SessionError
from llvq.runtime.executable import RunFacts
from llvq.runtime.session import Prompt


def script_of_embeds(facts: RunFacts, embeds: Tensor, cuts: Collection[int] = ()) -> list[Prompt]:
    """Embeddings [chunks, text_len, text_dim] -> a prompt per chunk; those in `cuts` begin shots.

    A row equal to the one before is the same prompt: its keys and values are computed once.
    """
    wanted = (facts.text_len, facts.text_dim)
    if embeds.dim() != 3 or tuple(embeds.shape[1:]) != wanted:
        raise SessionError(
            f"prompt_embeds has shape {tuple(embeds.shape)}",
            because=f"this model takes [chunks, {wanted[0]}, {wanted[1]}]",
            fix="encode one prompt per chunk with the text encoder of this model",
        )
    if outside := sorted(cut for cut in cuts if not 0 < cut < len(embeds)):
        raise SessionError(
            f"there is no shot that begins at chunk {outside[0]}",
            because=f"chunks are counted from 0, and this video has {len(embeds)}",
            fix=f"use --cut with 1 to {len(embeds) - 1}",
        )
    rows: list[Tensor] = []
    for row in embeds.to(facts.torch_dtype).split(1):
        rows.append(rows[-1] if rows and torch.equal(rows[-1], row) else row)
    return [Prompt(row, index in cuts) for index, row in enumerate(rows)]


def read_tensor(path: str | Path, name: str) -> Tensor:
    """One tensor of a safetensors file. Raises SessionError."""
    tensor = find_tensor(path, name)
    if tensor is None:
        raise SessionError(
            f"{Path(path).name} has no tensor {name!r}",
            where=str(path),
            fix=f"save it under the name {name!r}",
        )
    return tensor


def find_tensor(path: str | Path, name: str) -> Tensor | None:
    """One tensor of a safetensors file, None if there is no such tensor. Raises SessionError."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name) if name in set(file.keys()) else None
    except (OSError, SafetensorError) as error:
        raise SessionError(
            f"{Path(path).name} cannot be read",
            where=str(path),
            because=str(error),
            fix="pass a .safetensors file",
        ) from error
