"""Carry out a weight plan straight into safetensors files, a few rows at a time.

The sizes of all targets are known before a weight is read, so the header is written first and
every piece goes to its final offset. The bytes depend on the plan and the weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llvq.errors import FormatError, OutputError
from llvq.sources import TensorSource, TensorSpec
from llvq.weights import WeightRecord, pieces, target_specs

# The names of the safetensors format.
DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
HEADER_ALIGNMENT = 8
METADATA: Mapping[str, str] = MappingProxyType({"format": "pt"})

Shard = tuple[list[WeightRecord], dict[str, TensorSpec]]


def write_shards(
    records: Sequence[WeightRecord],
    source: TensorSource,
    folder: Path,
    *,
    max_shard_bytes: int = 2 << 30,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Write all targets to `weights-00001.safetensors`, ... in folder; gives target -> file name.

    Records fill the shards in plan order; a record is never split, and a shard holds one part of
    the model (`dit.`, `vae.`, `text.`), which can then be left out. Within a shard the wider dtypes
    come first, so that every tensor is aligned. `progress` is told (bytes written, bytes in
    all). Raises OutputError if a file cannot be written, FormatError if a weight is not finite or
    does not fit its record; either way no file is left behind.
    """
    shards = _plan_shards(records, source, max_shard_bytes)
    total = sum(spec.nbytes for _, specs in shards for spec in specs.values())
    done = 0
    files: dict[str, str] = {}
    with ExitStack() as undo:
        for number, shard in enumerate(shards, start=1):
            path = folder / f"weights-{number:05d}.safetensors"
            undo.callback(path.unlink, missing_ok=True)
            for written in _write_shard(path, shard, source):
                done += written
                if progress is not None:
                    progress(done, total)
            files.update(dict.fromkeys(shard[1], path.name))
        undo.pop_all()
    return files


def write_file(
    path: Path,
    records: Sequence[WeightRecord],
    source: TensorSource,
    *,
    metadata: Mapping[str, str],
) -> Iterator[int]:
    """Write all targets to one file whose header says `metadata`; yields bytes as they are written.

    Raises as `write_shards`; a file that was begun is the caller's to remove.
    """
    specs = {k: v for record in records for k, v in target_specs(record, source).items()}
    yield from _write_shard(path, (list(records), specs), source, metadata)


def _plan_shards(
    records: Sequence[WeightRecord], source: TensorSource, max_shard_bytes: int
) -> list[Shard]:
    shards: list[Shard] = []
    seen: set[str] = set()
    room, part = 0, ""
    for record in records:
        specs = target_specs(record, source)
        if not seen.isdisjoint(specs):
            raise FormatError(f"two records make weight {record.target}", fix="name them apart")
        seen.update(specs)
        size = sum(spec.nbytes for spec in specs.values())
        if not shards or size > room or _part(record) != part:
            shards.append(([], {}))
            room, part = max_shard_bytes, _part(record)
        shards[-1][0].append(record)
        shards[-1][1].update(specs)
        room -= size
    return shards


def _part(record: WeightRecord) -> str:
    """`text` of `text.shared.weight`; a name without a dot is of no part."""
    return record.target.rpartition(".")[0].split(".")[0]


def _write_shard(
    path: Path, shard: Shard, source: TensorSource, metadata: Mapping[str, str] = METADATA
) -> Iterator[int]:
    """Yields the bytes of each piece once it is written."""
    records, specs = shard
    header, offsets = _layout(specs, metadata)
    with _writing(path) as file:
        _write_at(file, path, 0, header)
        for record in records:
            for piece in pieces(record, source):
                spec = specs[piece.target]
                row_bytes = spec.nbytes // max(1, spec.shape[0]) if spec.shape else 0
                data = _as_bytes(piece.values)
                _write_at(file, path, offsets[piece.target] + piece.start * row_bytes, data)
                yield len(data)


def _layout(
    specs: dict[str, TensorSpec], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The header, and the offset of each tensor in the file."""
    order = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)  # stable: plan order
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    begins = {}
    for name in order:
        spec = specs[name]
        end = begin + spec.nbytes
        entries[name] = {
            "dtype": _dtype_name(name, spec.dtype),
            "shape": spec.shape,
            "data_offsets": (begin, end),
        }
        begins[name] = begin
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + at for name, at in begins.items()}


def _dtype_name(name: str, dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise FormatError(
            f"weight {name} is {dtype}, which safetensors files cannot hold here",
            fix=f"cast it to one of {', '.join(DTYPE_NAMES.values())}",
        )
    return DTYPE_NAMES[dtype]


def _as_bytes(t: Tensor) -> memoryview:
    return t.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


def _writing(path: Path) -> FileIO:
    # Unbuffered, so that a full disk is reported by the write it stops and never by close().
    try:
        return open(path, "wb", buffering=0)
    except OSError as error:
        raise _output_error(path, error) from error


def _write_at(file: FileIO, path: Path, offset: int, data: bytes | memoryview) -> None:
    try:
        file.seek(offset)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise _output_error(path, error) from error


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(
        "cannot write the weights",
        where=str(path),
        because=error.strerror or str(error),
        fix="free some space, or choose another output folder",
    )
