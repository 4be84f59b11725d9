"""Distances between what a model should compute and what it computes.

All are functions of four sums over elements, r the reference and v the value:
signal = sum r^2, noise = sum (r - v)^2, power = sum v^2, dot = sum r v.
So tensors of any size are measured part by part, and parts are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UINT8_PEAK = 255.0


@dataclass(frozen=True)
class Energies:
    """The four sums of a pair of tensors. Energies of disjoint parts add up."""

    signal: float = 0.0
    noise: float = 0.0
    power: float = 0.0
    dot: float = 0.0

    def __add__(self, other: Energies) -> Energies:
        return Energies(
            self.signal + other.signal,
            self.noise + other.noise,
            self.power + other.power,
            self.dot + other.dot,
        )

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise). inf where nothing differs."""
        return _decibel(self.signal, self.noise)

    @property
    def relative_l2(self) -> float:
        """|r - v| / |r| = sqrt(noise / signal)."""
        if self.noise == 0:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf

    @property
    def cosine(self) -> float:
        """r.v / (|r| |v|); 1 for two zero tensors, 0 where only one is zero."""
        if self.signal == 0 or self.power == 0:
            return 1.0 if self.signal == self.power else 0.0
        return self.dot / (math.sqrt(self.signal) * math.sqrt(self.power))

    def to_dict(self) -> dict[str, float]:
        return {"sqnr_db": self.sqnr_db, "cosine": self.cosine, "relative_l2": self.relative_l2}


NOTHING = Energies()


def energies(reference: Tensor, value: Tensor) -> Energies:
    """The four sums of two tensors of one shape, any dtype and device; summed in fp64."""
    if reference.shape != value.shape:
        raise ValueError(f"shapes {tuple(reference.shape)} and {tuple(value.shape)} differ")
    r, v = reference.detach().float(), value.detach().to(reference.device).float()
    products = (r * r, (r - v).square(), v * v, r * v)
    return Energies(*torch.stack([p.sum(dtype=torch.float64) for p in products]).tolist())


def sqnr_db(reference: Tensor, value: Tensor) -> float:
    """Signal to quantization noise ratio: 10 log10(sum r^2 / sum (r - v)^2)."""
    return energies(reference, value).sqnr_db


def cosine(reference: Tensor, value: Tensor) -> float:
    """Cosine similarity: r.v / (|r| |v|)."""
    return energies(reference, value).cosine


def relative_l2(reference: Tensor, value: Tensor) -> float:
    """|r - v| / |r|."""
    return energies(reference, value).relative_l2


def psnr_db(reference: Tensor, value: Tensor) -> float:
    """Peak signal to noise ratio of uint8 frames: 10 log10(255^2 / mean (r - v)^2)."""
    noise = energies(reference, value).noise / max(1, reference.numel())
    return _decibel(UINT8_PEAK**2, noise)


def slope(values: Sequence[float]) -> float:
    """The least-squares slope of values over their index: drift, in units per chunk.

    sum (i - mean i)(y_i - mean y) / sum (i - mean i)^2. NaN where fewer than two are given or one
    is not finite.
    """
    count = len(values)
    if count < 2 or not all(map(math.isfinite, values)):
        return math.nan
    middle, mean = (count - 1) / 2, sum(values) / count
    across = sum((i - middle) * (y - mean) for i, y in enumerate(values))
    return across / sum((i - middle) ** 2 for i in range(count))


def _decibel(signal: float, noise: float) -> float:
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
