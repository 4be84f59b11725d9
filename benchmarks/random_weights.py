"""Random weights of any size without a checkpoint: on a device at once, or read as from a file.

The same name, seed and device give the same tensor. They are small enough that an untrained network
neither saturates nor grows from layer to layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from llvq.compiler import Compiled
from llvq.formats import nvfp4
from llvq.models.chunk import meta_model
from llvq.models.config import ModelConfig
from llvq.sources import TensorSpec
from llvq.weights import WeightRecord

BIAS_STD = 0.02
MODULATION_GAIN = 0.1
# Root mean square of E2M1 values whose codes are drawn at random, all sixteen alike.
E2M1_RMS = (68.5 / 8) ** 0.5
# Bytes of E4M3 scales from 128 to 240, and their root mean square.
SCALE_BYTES = (0x70, 0x78)
SCALE_RMS = 187.6
POOL = 2**24


def weight_specs(config: ModelConfig, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """Every weight of denoiser and VAE, under the names of the captured model."""
    model = meta_model(config, dtype)
    return {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in model.state_dict().items()}


def deviation(name: str, shape: Sequence[int]) -> float:
    parts = name.split(".")
    if parts[-1] == "bias":
        return BIAS_STD
    if parts[-1] == "modulation":
        return float(shape[-1] ** -0.5)
    gain = MODULATION_GAIN if "time_projection" in parts else 1.0
    return gain * float(prod(shape[1:]) ** -0.5)


def is_norm(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] == "gamma" or (parts[-1] == "weight" and "norm" in parts[-2])


def device_weights(
    specs: Mapping[str, TensorSpec], device: torch.device, seed: int
) -> dict[str, Tensor]:
    """All tensors at once, drawn on the device."""
    made = {}
    for name, spec in specs.items():
        generator = torch.Generator(device).manual_seed(_seed(name, seed))
        values = torch.randn(spec.shape, generator=generator, device=device, dtype=spec.dtype)
        made[name] = values.mul_(0.1).add_(1) if is_norm(name) else values
        if not is_norm(name):
            values.mul_(deviation(name, spec.shape))
    return made


def carry_out(
    records: Mapping[str, WeightRecord], source: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A weight plan on the device of its sources: what `materialize` gives, without the host.

    Of the operations those that an uncalibrated program has.
    """
    made: dict[str, Tensor] = {}
    for record in records.values():
        tensors = [source[name] for name in record.sources]
        if record.op == "quantize":
            made |= _quantized(record, tensors)
        elif record.op in ("copy", "concat"):
            joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0].clone()
            made[record.target] = joined.to(record.dtype or joined.dtype)
        else:
            raise NotImplementedError(f"weight plans with {record.op!r}")
    return made


def _quantized(record: WeightRecord, tensors: list[Tensor]) -> dict[str, Tensor]:
    assert record.block_rule is not None
    parts = [nvfp4.quantize(w, block_rule=record.block_rule) for w in tensors]
    return {
        f"{record.target}.codes": torch.cat([part.codes for part in parts]),
        f"{record.target}.scales": torch.cat(
            [part.scales.view(torch.uint8) for part in parts]
        ).view(torch.float8_e4m3fn),
        f"{record.target}.global_scale": torch.stack([part.global_scale for part in parts]),
    }


def sources_of(compiled: Compiled, device: torch.device, seed: int) -> dict[str, Tensor]:
    """Random weights of a compiled model, and the constants that its configuration gives."""
    specs = weight_specs(compiled.config, getattr(torch, compiled.recipe.dtype))
    constants = {name: t.to(device) for name, t in compiled.constants.items()}
    return device_weights(specs, device, seed) | constants


class RandomSource:
    """A checkpoint that is in no file: what is a matrix of the denoiser's blocks is NVFP4 already.

    Codes and scales are drawn from a pool, so that writing a model takes as long as the disk does.
    """

    def __init__(
        self, specs: Mapping[str, TensorSpec], constants: Mapping[str, Tensor], seed: int
    ) -> None:
        self.specs, self.constants, self.seed = dict(specs), dict(constants), seed
        random = torch.Generator().manual_seed(seed)
        self.bytes = torch.randint(0, 256, (POOL,), dtype=torch.uint8, generator=random)
        self.scales = torch.randint(*SCALE_BYTES, (POOL,), dtype=torch.uint8, generator=random)
        self.normal = torch.randn(POOL, generator=random)

    def names(self) -> Sequence[str]:
        return (*self.specs, *self.constants)

    def spec(self, name: str) -> TensorSpec:
        if name in self.constants:
            return TensorSpec(self.constants[name].dtype, tuple(self.constants[name].shape))
        return self.specs[name]

    def read(self, name: str) -> Tensor:
        if name in self.constants:
            return self.constants[name]
        spec = self.specs[name]
        values = drawn(self.normal, spec.shape, _seed(name, self.seed))
        scaled = 1 + 0.1 * values if is_norm(name) else values * deviation(name, spec.shape)
        return scaled.to(spec.dtype)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        return self.read(name)[start:stop]

    def packed(self, name: str) -> RandomPacked | None:
        shape = self.spec(name).shape
        is_packed = ".blocks." in name and len(shape) == 2 and name.endswith(".weight")
        return RandomPacked(self, name) if is_packed else None


class RandomPacked:
    """A weight [N, K] in NVFP4."""

    def __init__(self, source: RandomSource, name: str) -> None:
        self.source, self.name = source, name
        self.rows, self.k = source.spec(name).shape

    def global_scale(self) -> Tensor:
        return torch.tensor(deviation(self.name, (self.rows, self.k)) / (E2M1_RMS * SCALE_RMS))

    def read_rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        seed, rows = _seed(f"{self.name}/{start}", self.source.seed), stop - start
        codes = drawn(self.source.bytes, (rows, self.k // 2), seed)
        scales = drawn(self.source.scales, (rows, self.k // nvfp4.BLOCK), seed)
        return codes, scales.view(torch.float8_e4m3fn)


def drawn(pool: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Values of a pool from a place that the seed gives, around its end as often as it takes."""
    missing, start, parts = prod(shape), seed % len(pool), []
    while missing:
        parts.append(pool[start : start + missing])
        missing, start = missing - len(parts[-1]), 0
    return torch.cat(parts).reshape(tuple(shape))


def _seed(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
