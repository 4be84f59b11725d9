"""Which GEMM a shape gets, where a target has several: `gemm_choice.toml`, read once."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Choice:
    """The implementation of a linear in NVFP4 for up to `rows` rows of one weight's shape."""

    chip: str
    rows: int
    features: int
    reduction: int
    implementation: str


@cache
def choices() -> tuple[Choice, ...]:
    """Every choice, those of fewer rows first."""
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    read = (Choice(**entry) for entry in tomllib.loads(text)["choice"])
    return tuple(sorted(read, key=lambda choice: choice.rows))


def choose_gemm(
    chip: str | None,
    rows: int,
    features: int,
    reduction: int,
    default: str,
    among: Sequence[Choice] | None = None,
) -> str:
    """The implementation of the first choice that covers these rows, or the default."""
    wanted = (chip, features, reduction)
    for choice in choices() if among is None else among:
        fits = (choice.chip, choice.features, choice.reduction) == wanted
        if fits and rows <= choice.rows:
            return choice.implementation
    return default
