"""What an ONNX graph is made of, as plain data: values, weights, initializers, calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Sizes = tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. A size that is only known when it runs is None."""

    name: str
    dtype: torch.dtype
    shape: Sizes


@dataclass(frozen=True)
class Weight:
    """A weight of the program, or the rows of it from `start` on. `shape` is that of the rows."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0

    def rows(self, start: int, count: int) -> Weight:
        return Weight(self.name, self.dtype, (count, *self.shape[1:]), start)

    @property
    def offset(self) -> int:
        """Bytes before it in the whole weight."""
        return self.start * torch.Size(self.shape[1:]).numel() * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Initializer:
    """A tensor in the model: a constant with its bytes, or a weight that lies in a file."""

    value: Value
    source: bytes | Weight


@dataclass(frozen=True)
class Call:
    """One node: an operator of ONNX, or of another domain, and the module it comes from."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[Value, ...]
    attributes: tuple[tuple[str, Any], ...]
    origin: str
