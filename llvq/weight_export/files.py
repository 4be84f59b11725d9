"""Write a source to disk as another tool's file or folder: streamed, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llvq.checkpoints.safetensors_file import DTYPES
from llvq.errors import OutputError
from llvq.sources import TensorSource
from llvq.weights import WeightRecord
from llvq.weights_writer import METADATA, write_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
Progress = Callable[[int, int], None]


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`; `result` in it takes the place of `path` if all went well.

    A file replaces a file; the files of a folder join what is in it. Raises OutputError, and leaves
    nothing behind.
    """
    part = path.absolute().with_name(f".{path.name}.part-{os.getpid()}")
    try:
        shutil.rmtree(part, ignore_errors=True)  # only a dead process of our id can have left one
        part.mkdir()
        yield part / "result"
        _move(part / "result", path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{path.name} cannot be written",
            where=str(path),
            because=error.strerror or str(error),
            fix="free some space, or name another path with -o",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move(result: Path, path: Path) -> None:
    if result.is_dir() and path.is_dir():
        for file in sorted(result.iterdir()):
            os.replace(file, path / file.name)
    else:
        os.replace(result, path)


def write_folder(
    path: Path, source: TensorSource, config: Mapping[str, Any], progress: Progress
) -> None:
    """config.json and one file of weights, as diffusers names it."""
    path.mkdir()
    text = json.dumps(config, indent=2) + "\n"
    (path / "config.json").write_text(text, encoding="utf-8")
    write_safetensors(path / WEIGHTS, source, {}, progress)


def write_safetensors(
    path: Path,
    source: TensorSource,
    metadata: Mapping[str, str],
    progress: Progress,
) -> None:
    """All tensors of a source, a few rows at a time."""
    _stream(path, source, metadata, progress, total=_nbytes(source))


def write_torch(
    path: Path,
    source: TensorSource,
    beside: Mapping[str, Any],
    progress: Progress,
) -> None:
    """`{"generator": tensors, **beside}` as torch.save writes it.

    torch.save wants all tensors at once, so they are streamed to a file beside and mapped from it:
    memory does not follow the size of the model, but the disk holds the weights twice for a while.
    """
    total = 2 * _nbytes(source)
    streamed = path.with_name("streamed")
    _stream(streamed, source, {}, progress, total=total)
    tensors = _mapped(streamed)
    with path.open("wb", buffering=0) as raw:
        counted: Any = _Counted(raw, lambda done: progress(min(total // 2 + done, total), total))
        try:
            torch.save({"generator": {n: tensors[n] for n in source.names()}, **beside}, counted)
        except RuntimeError as error:
            if counted.error is not None:
                raise counted.error from error
            raise


def _stream(
    path: Path, source: TensorSource, metadata: Mapping[str, str], progress: Progress, *, total: int
) -> None:
    records = [WeightRecord(name, "copy", (name,)) for name in source.names()]
    done = 0
    for written in write_file(path, records, source, metadata={**METADATA, **metadata}):
        done += written
        progress(done, total)


def _nbytes(source: TensorSource) -> int:
    return sum(source.spec(name).nbytes for name in source.names())


def _mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each in a storage of its own that is mapped, not read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__")
    data = np.memmap(path, dtype=np.uint8, mode="c", offset=8 + length)
    return {
        name: torch.from_numpy(data[entry["data_offsets"][0] : entry["data_offsets"][1]])
        .view(DTYPES[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in entries.items()
    }


class _Counted(RawIOBase):
    """A file that tells how much was written, and keeps the error that torch.save would hide."""

    def __init__(self, file: Any, told: Callable[[int], None]) -> None:
        self._file, self._told, self._done = file, told, 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            rest = memoryview(data).cast("B")
            size = len(rest)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        self._done += size
        self._told(self._done)
        return size
