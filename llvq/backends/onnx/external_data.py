"""The weights of all models in one file beside them, each once, streamed out of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from llvq.backends.onnx.records import Initializer, Weight
from llvq.sources import TensorSource

FILE = "weights.onnx.data"
PAGE = 4096
"""Tensors begin at pages, so that a reader can map them."""
STEP_BYTES = 16 << 20
Progress = Callable[[int, int], None]


def weights_read(initializers: Iterable[Initializer]) -> list[str]:
    """Names of the weights that lie in the file, each once, in order of use."""
    named = (i.source.name for i in initializers if isinstance(i.source, Weight))
    return list(dict.fromkeys(named))


def layout(names: Iterable[str], source: TensorSource) -> dict[str, int]:
    """Where each weight begins."""
    offsets, end = {}, 0
    for name in names:
        offsets[name] = -(-end // PAGE) * PAGE
        end = offsets[name] + source.spec(name).nbytes
    return offsets


def write(
    path: Path, offsets: Mapping[str, int], source: TensorSource, progress: Progress | None = None
) -> None:
    """A few rows at a time. `progress(done, total)` counts bytes."""
    total = sum(source.spec(name).nbytes for name in offsets)
    done = 0
    with open(path, "wb") as file:
        for name, offset in offsets.items():
            file.seek(offset)
            for piece in _pieces(source, name):
                done += file.write(piece.contiguous().flatten().view(torch.uint8).numpy().data)
                if progress is not None:
                    progress(done, total)


def _pieces(source: TensorSource, name: str) -> Iterator[torch.Tensor]:
    spec = source.spec(name)
    if spec.nbytes <= STEP_BYTES or not spec.shape:
        yield source.read(name)
        return
    rows = max(1, STEP_BYTES // (spec.nbytes // spec.shape[0]))
    for start in range(0, spec.shape[0], rows):
        yield source.read_rows(name, start, min(start + rows, spec.shape[0]))
