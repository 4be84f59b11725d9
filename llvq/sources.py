"""Named tensors that can be looked at without being read: checkpoints, in memory or on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llvq.errors import CheckpointError


@dataclass(frozen=True)
class TensorSpec:
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class PackedWeight(Protocol):
    """A weight [N, K] that a checkpoint holds in NVFP4, seen in llvq's own layout."""

    def global_scale(self) -> Tensor:
        """The decode scale of the whole weight, fp32 []."""

    def read_rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Codes uint8 [rows, K/2], even element in the low nibble, and e4m3 scales [rows, K/16]."""


class TensorSource(Protocol):
    """`read_rows` gives rows [start, stop) along dim 0; what it reads is not kept in memory.

    A weight that is stored in NVFP4 has the spec of its values in bf16, reads as these, and is
    handed out as it is by `packed`, so that nobody has to quantize it a second time.
    """

    def names(self) -> Sequence[str]: ...

    def spec(self, name: str) -> TensorSpec: ...

    def read(self, name: str) -> Tensor: ...

    def read_rows(self, name: str, start: int, stop: int) -> Tensor: ...

    def packed(self, name: str) -> PackedWeight | None:
        """The weight as it is stored, if that is NVFP4."""


class DictSource:
    """A TensorSource over tensors that are already in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def spec(self, name: str) -> TensorSpec:
        tensor = self.read(name)
        return TensorSpec(tensor.dtype, tuple(tensor.shape))

    def read(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(
                f"there is no tensor {name!r}", fix="names() lists what the source holds"
            )
        return self._tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        return self.read(name)[start:stop]

    def packed(self, name: str) -> PackedWeight | None:
        return None


class RenamedSource:
    """A source seen under other names. `names` maps the new name to the name in the source."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self._source, self._names = source, dict(names)

    def names(self) -> Sequence[str]:
        return tuple(self._names)

    def spec(self, name: str) -> TensorSpec:
        return self._source.spec(self._names[name])

    def read(self, name: str) -> Tensor:
        return self._source.read(self._names[name])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._source.read_rows(self._names[name], start, stop)

    def packed(self, name: str) -> PackedWeight | None:
        return self._source.packed(self._names[name])


class JoinedSource:
    """Several sources as one; each part is a prefix ("dit.", or "" for none) and a source."""

    def __init__(self, parts: Sequence[tuple[str, TensorSource]]) -> None:
        self._places = {
            prefix + name: (source, name) for prefix, source in parts for name in source.names()
        }

    def names(self) -> Sequence[str]:
        return tuple(self._places)

    def spec(self, name: str) -> TensorSpec:
        source, inner = self._place(name)
        return source.spec(inner)

    def read(self, name: str) -> Tensor:
        source, inner = self._place(name)
        return source.read(inner)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        source, inner = self._place(name)
        return source.read_rows(inner, start, stop)

    def packed(self, name: str) -> PackedWeight | None:
        source, inner = self._place(name)
        return source.packed(inner)

    def _place(self, name: str) -> tuple[TensorSource, str]:
        if name not in self._places:
            raise CheckpointError(
                f"no file holds the weight {name!r}",
                because="the program reads it, and none of its checkpoints has it",
                fix="pass the checkpoint of that part (--vae, --text-encoder)",
            )
        return self._places[name]
