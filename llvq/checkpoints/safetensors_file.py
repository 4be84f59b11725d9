"""Tensors of a `.safetensors` file, or of a folder of shards. Headers are read, data on demand.

A file is mapped anew for each read, which takes a millisecond: a map that stays open keeps every
page that was ever touched resident.
"""

from __future__ import annotations

import json
import re
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
SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


class SafetensorsSource:
    """A TensorSource over one or more files. `metadata` is what the headers say in words."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
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


def shards_of(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the checkpoint in `folder`.

    With an `*.index.json` those that it lists; else the only file, or one numbered set.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        files = tuple(folder / name for name in _indexed(indexes[0]))
        return _all_there(folder, files)
    files = tuple(sorted(folder.glob("*.safetensors")))
    if len(files) == 1 or (files and not indexes and _is_numbered_set(files)):
        return files
    raise CheckpointError(
        f"{folder.name} is not one checkpoint",
        where=str(folder),
        because=f"it has {len(files)} .safetensors files and {len(indexes)} index files",
        fix="name the checkpoint file instead of the folder",
    )


def _indexed(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        if all(Path(name).name == name for name in names):
            return names
        because = "it names files outside the folder"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        because = f"{type(error).__name__}: {error}"
    raise CheckpointError(
        f"{index.name} is not an index of shards",
        where=str(index),
        because=because,
        fix="download the index again",
    )


def _all_there(folder: Path, files: tuple[Path, ...]) -> tuple[Path, ...]:
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{len(missing)} of {len(files)} shards are missing",
            where=str(folder),
            because=f"the index lists {', '.join(missing)}",
            fix="download the missing shards into the folder",
        )
    return files


def _is_numbered_set(files: Sequence[Path]) -> bool:
    matches = [SHARD.fullmatch(file.name) for file in files]
    sets: Mapping[tuple[str, str], None] = {(m[1], m[3]): None for m in matches if m}
    return all(matches) and len(sets) == 1 and int(next(iter(sets))[1]) == len(files)
