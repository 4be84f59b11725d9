"""Tensors of one or more `.safetensors` files. Headers are read, data on demand.

A file is mapped anew for each read, which takes a millisecond: a map that stays open keeps every
page that was ever touched resident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llvq.errors import CheckpointError
from llvq.sources import TensorSpec

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsSource:
    """A TensorSource over one or more files. `metadata` is what the headers say in words."""

    def __init__(
        self, path: Path, files: Sequence[Path], index: Mapping[str, str] | None = None
    ) -> None:
        """`index`: the file that each tensor must be in, for all of them."""
        self.path, self.files = path, tuple(files)
        self.metadata: dict[str, str] = {}
        self._file_of: dict[str, Path] = {}
        self._specs: dict[str, TensorSpec] = {}
        for file in files:
            self._add(file)
        if not self._specs:
            raise CheckpointError(
                f"{path.name} holds no tensors",
                where=str(path),
                because="its header lists none",
                fix="name the file that holds the weights",
            )
        if index is not None:
            self._check(index)

    def _check(self, index: Mapping[str, str]) -> None:
        """The index and the headers must tell the same."""
        found = {name: file.name for name, file in self._file_of.items()}
        absent = [f"{n} is not in {index[n]}" for n in sorted(index) if found.get(n) != index[n]]
        surplus = [f"{n} is in {found[n]}" for n in sorted(found) if n not in index]
        if absent or surplus:
            raise CheckpointError(
                f"the index and the shards disagree on {len(absent) + len(surplus)} tensors",
                where=str(self.path),
                because="; ".join([*absent[:3], *surplus[:3]]),
                fix="download index and shards again, from one revision of the checkpoint",
            )

    def _add(self, file: Path) -> None:
        try:
            with safe_open(str(file), framework="pt", device="cpu") as handle:
                specs = {name: _spec(handle, name, file) for name in handle.keys()}  # noqa: SIM118
                self.metadata |= handle.metadata() or {}
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(file, error) from error
        if twice := sorted(specs.keys() & self._specs.keys()):
            raise CheckpointError(
                f"{len(twice)} tensors are in more than one shard, the first is {twice[0]}",
                where=str(file),
                because="the shards are not of one checkpoint",
                fix="keep the shards of one checkpoint in the folder",
            )
        self._specs |= specs
        self._file_of |= dict.fromkeys(specs, file)

    def names(self) -> Sequence[str]:
        return tuple(self._specs)

    def spec(self, name: str) -> TensorSpec:
        return self._specs[name]

    def read(self, name: str) -> torch.Tensor:
        return self._read(name, None)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._read(name, slice(start, stop))

    def packed(self, name: str) -> None:
        """A file knows tensors alone: what they mean together is for the layouts to say."""
        return None

    def _read(self, name: str, rows: slice | None) -> torch.Tensor:
        file = self._file_of[name]
        tensor: torch.Tensor
        try:
            with safe_open(str(file), framework="pt", device="cpu") as handle:
                tensor = handle.get_tensor(name) if rows is None else handle.get_slice(name)[rows]
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(file, error) from error
        return tensor


def _spec(handle: Any, name: str, file: Path) -> TensorSpec:
    view = handle.get_slice(name)
    dtype = str(view.get_dtype())
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{name} is of dtype {dtype}",
            where=str(file),
            because=f"llvq reads {', '.join(DTYPES)}",
            fix="convert the checkpoint to BF16",
        )
    return TensorSpec(DTYPES[dtype], tuple(view.get_shape()))


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file.name} is damaged or not a safetensors file",
        where=str(file),
        because=str(error),
        fix="download or copy it again, and compare its size and sha256 with the publisher's",
    )
