"""A LoRA in a file: which weights it changes, by how much, and what identifies it.

The merged weight is W + alpha / rank * B @ A. Source: PEFT's LoraLayer; `generator_lora` of
LongLive-2.0's training checkpoints has these names, rank 128 and alpha 128.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from llvq.checkpoints.checkpoint import json_beside
from llvq.checkpoints.lora_names import changed_weight, of_generator
from llvq.checkpoints.source import open_tensors
from llvq.errors import CheckpointError, RecipeError
from llvq.sources import TensorSource

PEFT_CONFIG = "adapter_config.json"
ALPHA_KEYS = ("lora_alpha", "alpha", "adapter.alpha", "adapter.lora_alpha")
# Of PEFT's options those that change what is computed.
UNSUPPORTED = ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern")
LISTED = 6


@dataclass(frozen=True)
class Lora:
    """`layers`: weight in Wan's names -> names of A [rank, K] and B [N, rank] in `tensors`.

    `sha256` is over the tensors alone: the same LoRA in another file has the same.
    """

    path: Path
    tensors: TensorSource
    layers: Mapping[str, tuple[str, str]]
    rank: int
    alpha: float
    sha256: str
    notes: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def record(self) -> dict[str, object]:
        """What a manifest says of it."""
        return {
            "name": self.path.name,
            "sha256": self.sha256,
            "rank": self.rank,
            "alpha": self.alpha,
            "layers": len(self.layers),
        }


def read_lora(path: str | PathLike[str], *, alpha: float | None = None) -> Lora:
    """Open a LoRA: a training checkpoint with `generator_lora`, or what PEFT saves.

    `alpha`: given here, else in the file or in adapter_config.json beside it, else the rank.
    Raises CheckpointError for tensors that are no LoRA's or do not go together.
    """
    path = Path(path)
    source = open_tensors(path)
    layers = _layers(source, path)
    ranks = {source.spec(a).shape[0] for a, _ in layers.values()}
    if len(ranks) > 1:
        raise _no_lora(path, f"its layers have ranks {', '.join(map(str, sorted(ranks)))}")
    rank = ranks.pop()
    config = json_beside(path, PEFT_CONFIG)
    if used := [key for key in UNSUPPORTED if config.get(key)]:
        raise _no_lora(path, f"{PEFT_CONFIG} has {used[0]} = {str(config[used[0]])[:60]}")
    stated = alpha if alpha is not None else _stated_alpha({**source.metadata, **config})
    chosen = float(rank) if stated is None else _positive(stated, path)
    digest = _sha256(source, layers)
    notes = [
        f"recognised: LoRA of rank {rank} and alpha {chosen:g} over {len(layers)} linears, "
        f"sha256 {digest[:16]}, merged before quantization"
    ]
    if stated is None:
        notes.append(f"{path.name} does not say its alpha: taken as its rank (--lora-alpha)")
    return Lora(path, source, layers, rank, chosen, digest, tuple(notes))


def read_loras(
    paths: Sequence[str | PathLike[str]], alphas: Sequence[float] = ()
) -> tuple[Lora, ...]:
    """Several, in this order; `alphas`: one for each, or none.

    Raises CheckpointError, RecipeError.
    """
    if alphas and len(alphas) != len(paths):
        raise RecipeError(
            f"{len(paths)} LoRAs were given, and {len(alphas)} alphas",
            because="the first --lora-alpha is of the first --lora, and so on",
            fix="give --lora-alpha once for each --lora, or not at all",
        )
    if not alphas:
        return tuple(read_lora(path) for path in paths)
    return tuple(read_lora(p, alpha=alpha) for p, alpha in zip(paths, alphas, strict=True))


def _layers(source: TensorSource, path: Path) -> dict[str, tuple[str, str]]:
    halves: dict[str, dict[str, str]] = {}
    problems = []
    for name in of_generator(source.names()):
        found = changed_weight(name)
        if found is None:
            problems.append(f"{name} is no lora_A or lora_B")
        elif (other := halves.setdefault(found[0], {}).setdefault(found[1], name)) != name:
            problems.append(f"{other} and {name} are one tensor")
        elif (problem := _problem(source, name)) is not None:
            problems.append(problem)
    for weight, sides in halves.items():
        if len(sides) == 1:
            problems.append(f"{weight} has no lora_{'B' if 'A' in sides else 'A'}")
        elif not problems:
            a, b = (source.spec(sides[side]).shape for side in "AB")
            if a[0] != b[1]:
                problems.append(f"{weight}: A is {list(a)} and B {list(b)}, of different rank")
    if problems or not halves:
        raise _no_lora(path, listed(problems) or "it has no tensors")
    return {weight: (sides["A"], sides["B"]) for weight, sides in halves.items()}


def _problem(source: TensorSource, name: str) -> str | None:
    spec = source.spec(name)
    if len(spec.shape) == 2 and 0 not in spec.shape and spec.dtype.is_floating_point:
        return None
    return f"{name} is {spec.dtype} {list(spec.shape)}, not a matrix of floating point"


def listed(problems: list[str]) -> str:
    rest = len(problems) - LISTED
    return "; ".join([*problems[:LISTED], *([f"and {rest} more"] if rest > 0 else [])])


def _stated_alpha(said: Mapping[str, object]) -> object:
    return next((said[key] for key in ALPHA_KEYS if said.get(key) is not None), None)


def _positive(value: object, path: Path) -> float:
    known = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        number = float(str(value)) if known else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number) and number > 0:
        return number
    raise CheckpointError(
        f"alpha = {str(value)[:60]} is none",
        where=str(path),
        because="the LoRA is scaled by alpha / rank, which must be above 0",
        fix="say the alpha that it was trained with: --lora-alpha 128",
    )


def _sha256(source: TensorSource, layers: Mapping[str, tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for weight in sorted(layers):
        for side, name in zip("AB", layers[weight], strict=True):
            tensor = source.read(name)
            digest.update(f"{weight} {side} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _no_lora(path: Path, because: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is not a LoRA that llvq can merge",
        where=str(path),
        because=because,
        fix="name a training checkpoint with generator_lora, or adapter_model.safetensors of PEFT",
    )
