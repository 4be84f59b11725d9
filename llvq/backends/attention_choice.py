"""Which attention in FP8 a shape gets, where a target has two: data, from measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The implementation for heads of `head_dim` channels, where tokens are whole `multiple`s."""

    chip: str
    head_dim: int
    multiple: int
    implementation: str


# Measured on an H100, 7040 queries over 28160 keys, under sustained load: cuDNN 2.74 ms with all
# that prepares its operands, our kernel 3.07 (benchmarks/results/hopper_log.md). No other size was.
CHOICES = (Choice("sm_90a", 128, 128, "triton:cudnn"),)


def choose_attention(
    chip: str | None,
    tokens: int,
    head_dim: int,
    default: str,
    among: Sequence[Choice] = CHOICES,
) -> str:
    """The implementation of `paged_attention_quantize_fp8` for a chunk of so many tokens."""
    for choice in among:
        if (choice.chip, choice.head_dim) == (chip, head_dim) and not tokens % choice.multiple:
            return choice.implementation
    return default
