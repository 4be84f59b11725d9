"""The weight plan: how every tensor of the artifact is made from tensors of the checkpoint.

Passes run on `meta` weights and append records here; nothing is read until the plan is carried
out, one target at a time, so a 10 GB checkpoint never has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch


@dataclass(frozen=True)
class TensorSpec:
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorSource(Protocol):
    """Named tensors that can be looked at without being read (a checkpoint on disk)."""

    def names(self) -> Sequence[str]: ...

    def spec(self, name: str) -> TensorSpec: ...

    def read(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class WeightRecord:
    """One target of the plan.

    `copy` takes one source; `concat` joins sources along dim 0; `quantize` packs each source
    [N, K] to NVFP4 with its own global scale and joins them along dim 0, giving the targets
    `T.codes` uint8 [N, K/2], `T.scales` e4m3 [N, K/16] and `T.global_scale` fp32 [len(sources)].
    """

    target: str
    op: Literal["copy", "concat", "quantize"]
    sources: tuple[str, ...]
    dtype: torch.dtype | None = None
    block_rule: str | None = None
