"""The weight plan: how every tensor of the artifact is made from tensors of the checkpoint.

Passes run on `meta` weights and append records here; nothing is read until the plan is carried
out, a few rows at a time, so a 10 GB checkpoint never has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from llvq.errors import CheckpointError, FormatError
from llvq.formats import nvfp4

# Elements handled at once: 32 MiB of bf16, so that peak memory does not follow the largest weight.
CHUNK_ELEMENTS = 1 << 24


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

    def read(self, name: str) -> Tensor: ...


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


@dataclass(frozen=True)
class WeightRecord:
    """One target of the plan.

    `copy` takes one source; `concat` joins sources along dim 0; `quantize` packs each source
    [N, K] to NVFP4 with its own global scale and joins them along dim 0, giving the targets
    `T.codes` uint8 [N, K/2], `T.scales` e4m3 [N, K/16] and `T.global_scale` fp32 [len(sources)].
    `dtype` is what `copy` and `concat` cast to (None keeps the source's); `block_rule` is for
    `quantize` alone.
    """

    target: str
    op: Literal["copy", "concat", "quantize"]
    sources: tuple[str, ...]
    dtype: torch.dtype | None = None
    block_rule: str | None = None


@dataclass(frozen=True)
class Piece:
    """Some rows of one target: what goes to rows [start, start + len(values)) along dim 0."""

    target: str
    start: int
    values: Tensor


def target_specs(record: WeightRecord, source: TensorSource) -> dict[str, TensorSpec]:
    """What carrying out the record will give, without reading a weight. Raises FormatError."""
    specs = [source.spec(name) for name in record.sources]
    if record.op == "copy":
        if len(specs) != 1:
            raise _misfit(record, f"copy takes one source, and this has {len(specs)}")
        return {record.target: TensorSpec(record.dtype or specs[0].dtype, specs[0].shape)}
    rows, width = _joined_shape(record, specs)
    if record.op == "concat":
        dtype = record.dtype or specs[0].dtype
        if record.dtype is None and any(spec.dtype != dtype for spec in specs):
            raise _misfit(record, "the sources differ in dtype and the record names none")
        return {record.target: TensorSpec(dtype, (rows, *width))}
    _check_quantizable(record, specs)
    codes, scales = (rows, width[0] // 2), (rows, width[0] // nvfp4.BLOCK)
    return {
        f"{record.target}.codes": TensorSpec(torch.uint8, codes),
        f"{record.target}.scales": TensorSpec(torch.float8_e4m3fn, scales),
        f"{record.target}.global_scale": TensorSpec(torch.float32, (len(specs),)),
    }


def materialize(record: WeightRecord, source: TensorSource) -> dict[str, Tensor]:
    """Carry out one record in memory. Raises FormatError, naming the tensor and row of a NaN."""
    specs = target_specs(record, source)
    targets = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    for piece in pieces(record, source):
        target = targets[piece.target]
        rows = target if target.ndim == 0 else target[piece.start :][: piece.values.shape[0]]
        rows.copy_(piece.values)
    return targets


def pieces(record: WeightRecord, source: TensorSource) -> Iterator[Piece]:
    """The targets of a record a few rows at a time, in row order for each target."""
    target_specs(record, source)
    start = 0
    for index, name in enumerate(record.sources):
        tensor = source.read(name)
        if record.op == "quantize":
            yield from _quantized_pieces(record, index, name, tensor, start)
        else:
            yield from _copied_pieces(record, name, tensor, start)
        start += tensor.shape[0] if tensor.ndim else 0


def _copied_pieces(record: WeightRecord, name: str, tensor: Tensor, start: int) -> Iterator[Piece]:
    for first, rows in _row_chunks(tensor):
        values = rows.to(record.dtype or rows.dtype)
        _check_finite(values, name, first)
        yield Piece(record.target, start + first, values)


def _quantized_pieces(
    record: WeightRecord, index: int, name: str, tensor: Tensor, start: int
) -> Iterator[Piece]:
    rule = _block_rule(record)
    g = nvfp4.global_scale(nvfp4.amax_of(tensor), rule)
    if not g.isfinite():
        for first, rows in _row_chunks(tensor):
            _check_finite(rows, name, first)
    yield Piece(f"{record.target}.global_scale", index, g.reshape(1))
    for first, rows in _row_chunks(tensor):
        q = nvfp4.quantize(rows, block_rule=rule, global_scale=g)
        yield Piece(f"{record.target}.codes", start + first, q.codes)
        yield Piece(f"{record.target}.scales", start + first, q.scales)


def _row_chunks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows); a 0-d tensor is one chunk."""
    if tensor.ndim == 0:
        yield 0, tensor
        return
    row_elements = max(1, tensor[:1].numel())
    step = max(1, CHUNK_ELEMENTS // row_elements)
    for first in range(0, tensor.shape[0], step):
        yield first, tensor[first : first + step]


def _check_finite(rows: Tensor, name: str, first: int) -> None:
    if not rows.is_floating_point() or not rows.numel():
        return
    wide = rows.float() if rows.dtype.itemsize == 1 else rows  # fp8 has no reductions
    if nvfp4.amax_of(wide).isfinite():
        return
    finite = wide.reshape(wide.shape[0] if wide.ndim else 1, -1).isfinite().all(1)
    row = first + int(finite.logical_not().nonzero()[0])
    raise FormatError(
        f"tensor {name} holds a NaN or an Inf",
        where=f"row {row}",
        because="a weight that is not finite makes every frame NaN",
        fix="check the checkpoint: the download or the training step that made it is broken",
    )


def _joined_shape(record: WeightRecord, specs: Sequence[TensorSpec]) -> tuple[int, tuple[int, ...]]:
    """(rows in all, the shape of one row)."""
    if not specs or any(not spec.shape for spec in specs):
        raise _misfit(record, f"{record.op} joins one or more sources along dim 0")
    width = specs[0].shape[1:]
    if any(spec.shape[1:] != width for spec in specs):
        raise _misfit(record, f"the sources differ in shape: {[spec.shape for spec in specs]}")
    return sum(spec.shape[0] for spec in specs), width


def _check_quantizable(record: WeightRecord, specs: Sequence[TensorSpec]) -> None:
    _block_rule(record)
    for name, spec in zip(record.sources, specs, strict=True):
        if len(spec.shape) != 2 or spec.shape[1] % nvfp4.BLOCK:
            raise _misfit(record, f"{name} is {spec.shape}, not [N, K] with K % {nvfp4.BLOCK} == 0")
        if spec.dtype not in nvfp4.INPUT_DTYPES:
            raise _misfit(record, f"{name} is {spec.dtype}, not bf16, fp16 or fp32")


def _block_rule(record: WeightRecord) -> str:
    if record.block_rule is None:
        raise _misfit(record, "a quantize record must name its block rule")
    return record.block_rule


def _misfit(record: WeightRecord, because: str) -> FormatError:
    return FormatError(
        f"cannot make weight {record.target}",
        where=f"sources {', '.join(record.sources)}",
        because=because,
        fix="exclude this weight from quantization in the recipe"
        if record.op == "quantize"
        else "check the checkpoint against the model's configuration",
    )


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

    def _place(self, name: str) -> tuple[TensorSource, str]:
        if name not in self._places:
            raise CheckpointError(
                f"no file holds the weight {name!r}",
                because="the program reads it, and none of its checkpoints has it",
                fix="pass the checkpoint of that part (--vae, --text-encoder)",
            )
        return self._places[name]
