"""The calibrations of ModelOpt that llvq runs: which algorithm, with which quantizers on a linear.

The parameters are ModelOpt's (https://nvidia.github.io/Model-Optimizer). Its `smoothquant` refuses
anything but INT8, yet no number that it gives depends on the 8 bits: the smoothing comes from the
largest magnitudes of inputs and weights, and the input's from the smoothed ones. So it runs with
INT8 quantizers that never round, and its result is used for NVFP4. Its `mse` is `max`, and then a
sweep over the weights alone, which is `weight_sweep.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from llvq.errors import RecipeError
from llvq.recipe import unknown

PREFIX = "modelopt:"
BACKEND = "llvq_nvfp4"  # under which ModelOpt finds our fake quantizer
NVFP4 = {
    "num_bits": (2, 1),
    "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)},
    "backend": BACKEND,
}
INT8_ROWS, INT8 = {"num_bits": 8, "axis": 0}, {"num_bits": 8, "axis": None}


@dataclass(frozen=True)
class Config:
    """One calibration. It sees all videos `phases` times; `sweeps_weights` comes after them."""

    name: str
    algorithm: Mapping[str, Any]
    phases: int
    weight: Mapping[str, Any] = field(default_factory=lambda: NVFP4)
    input: Mapping[str, Any] = field(default_factory=lambda: NVFP4)
    sweeps_weights: bool = False


CONFIGS = MappingProxyType(
    {
        config.name: config
        for config in (
            Config("max", {"method": "max"}, 1),
            Config("awq_lite", {"method": "awq_lite", "alpha_step": 0.1}, 2),
            Config("smoothquant", {"method": "smoothquant", "alpha": 0.5}, 1, INT8_ROWS, INT8),
            Config("svdquant", {"method": "svdquant", "lowrank": 32}, 3),
            Config("mse", {"method": "max"}, 1, sweeps_weights=True),
        )
    }
)


def config_of(name: str) -> Config:
    """The configuration that `modelopt:awq_lite` names. Raises RecipeError."""
    tool, colon, rest = name.partition(":")
    if not colon or f"{tool}:" != PREFIX:
        raise RecipeError(
            f"no calibration {name!r}",
            because=f"a calibration is named {PREFIX}<config>",
            fix=f"use one of {', '.join(PREFIX + known for known in CONFIGS)}",
        )
    if rest not in CONFIGS:
        raise unknown("calibration", name, [PREFIX + known for known in CONFIGS])
    return CONFIGS[rest]
