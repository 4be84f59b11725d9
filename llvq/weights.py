"""The weight plan: how every tensor of the artifact is made from tensors of the checkpoint.

Passes run on `meta` weights and append records here; nothing is read until the plan is carried
out, a few rows at a time, so a 10 GB checkpoint never has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llvq.calibration import LayerFacts
from llvq.errors import FormatError
from llvq.formats import nvfp4
from llvq.residual import block_amax, residual_of
from llvq.sources import PackedWeight, TensorSource, TensorSpec

# Elements handled at once: 32 MiB of bf16, so that peak memory does not follow the largest weight.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class WeightRecord:
    """One target of the plan.

    `copy` takes one source; `concat` joins sources along dim 0; `multiply` is the product of
    vectors; `scale` is one number times `factor`, fp32 [], and must be positive. `quantize` packs
    each source [N, K] to NVFP4 with its own global scale and joins them along dim 0, giving
    `T.codes` uint8 [N, K/2], `T.scales` e4m3 [N, K/16] and `T.global_scale` fp32 [len(sources)].
    A source that is NVFP4 already is taken over as it is, to the byte.

    `dtype` is what `copy`, `concat` and `multiply` cast to (None keeps the source's);
    `block_rule`, and `facts` with one entry per source or none at all, are for `quantize` alone.
    Smoothing and low-rank branch, as the graph reads them in `dtype`, are taken out of a source
    before it is packed; with `weight_amax` that is what each block is scaled for.
    """

    target: str
    op: Literal["copy", "concat", "multiply", "scale", "quantize"]
    sources: tuple[str, ...]
    dtype: torch.dtype | None = None
    block_rule: str | None = None
    facts: tuple[LayerFacts, ...] = ()
    factor: float = 1.0

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the tensors that carrying out the record gives."""
        packed = ("codes", "scales", "global_scale") if self.op == "quantize" else ()
        return tuple(f"{self.target}.{part}" for part in packed) or (self.target,)


@dataclass(frozen=True)
class Piece:
    """Some rows of one target: what goes to rows [start, start + len(values)) along dim 0."""

    target: str
    start: int
    values: Tensor


def target_specs(record: WeightRecord, source: TensorSource) -> dict[str, TensorSpec]:
    """What carrying out the record will give, without reading a weight. Raises FormatError."""
    specs = [source.spec(name) for name in record.sources]
    if record.op in ("copy", "scale"):
        if len(specs) != 1:
            raise _misfit(record, f"{record.op} takes one source, and this has {len(specs)}")
        if record.op == "scale":
            if specs[0].shape or not specs[0].dtype.is_floating_point:
                raise _misfit(record, f"a scale is one number, and this is {specs[0]}")
            return {record.target: TensorSpec(torch.float32, ())}
        return {record.target: TensorSpec(record.dtype or specs[0].dtype, specs[0].shape)}
    if record.op == "multiply":
        if any(len(spec.shape) != 1 or spec.shape != specs[0].shape for spec in specs):
            raise _misfit(record, f"multiply takes vectors of one length, these are {specs}")
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
    if record.op in ("scale", "multiply"):
        yield Piece(record.target, 0, _computed(record, source))
        return
    start = 0
    for index, name in enumerate(record.sources):
        if record.op == "quantize":
            yield from _quantized_pieces(record, index, source, start)
        else:
            yield from _copied_pieces(record, name, source, start)
        shape = source.spec(name).shape
        start += shape[0] if shape else 0


def _copied_pieces(
    record: WeightRecord, name: str, source: TensorSource, start: int
) -> Iterator[Piece]:
    for first, rows in _row_chunks(source, name):
        values = rows.to(record.dtype or rows.dtype)
        _check_finite(values, name, first)
        yield Piece(record.target, start + first, values)


def _computed(record: WeightRecord, source: TensorSource) -> Tensor:
    """What a `scale` or a `multiply` gives, [] or [K]; it is small."""
    dtype = target_specs(record, source)[record.target].dtype
    values = torch.tensor(record.factor)
    for name in record.sources:
        read = source.read(name).to(dtype)
        _check_finite(read, name, 0)
        if record.op == "scale" and not read > 0:
            raise FormatError(
                f"tensor {name} is {float(read):g}, and a scale must be positive",
                because="the layer saw nothing but zeros, or the calibration did not run",
                fix="calibrate on inputs that reach this layer, or exclude it in the recipe",
            )
        values = values * read.float()
    return values.to(dtype)


def _quantized_pieces(
    record: WeightRecord, index: int, source: TensorSource, start: int
) -> Iterator[Piece]:
    """Reads the weight twice: its largest magnitude comes before any code."""
    name, rule = record.sources[index], _block_rule(record)
    if packed := source.packed(name):
        yield from _adopted_pieces(record, index, packed, source.spec(name), start)
        return
    facts = record.facts[index] if record.facts else LayerFacts()
    residual = residual_of(source, name, facts, record.dtype)
    amax = _amax(residual, name)
    if facts.weight_amax:
        amax = torch.maximum(amax, _amax(source, facts.weight_amax).float())
    g = nvfp4.global_scale(amax, rule)
    yield Piece(f"{record.target}.global_scale", index, g.reshape(1))
    for first, rows in _row_chunks(residual, name):
        scaled_for = block_amax(source, facts.weight_amax, first, rows.shape[0])
        q = nvfp4.quantize(rows, block_rule=rule, global_scale=g, block_amax=scaled_for)
        yield Piece(f"{record.target}.codes", start + first, q.codes)
        yield Piece(f"{record.target}.scales", start + first, q.scales)


def _adopted_pieces(
    record: WeightRecord, index: int, packed: PackedWeight, spec: TensorSpec, start: int
) -> Iterator[Piece]:
    """A weight that is NVFP4 in the checkpoint: no code and no scale changes."""
    name, g = record.sources[index], packed.global_scale()
    _check_finite(g, f"{name} (its global scale)", 0)
    yield Piece(f"{record.target}.global_scale", index, g.reshape(1))
    for first, stop in _row_ranges(spec):
        codes, scales = packed.read_rows(first, stop)
        _check_finite(scales, f"{name} (its block scales)", first)
        yield Piece(f"{record.target}.codes", start + first, codes)
        yield Piece(f"{record.target}.scales", start + first, scales)


def _amax(source: TensorSource, name: str) -> Tensor:
    """The largest magnitude of a whole weight. Raises FormatError at a row with a NaN or Inf."""
    largest = torch.zeros(())
    for first, rows in _row_chunks(source, name):
        amax = nvfp4.amax_of(rows)
        if not amax.isfinite():
            _check_finite(rows, name, first)
        largest = torch.maximum(largest, amax)
    return largest


def _row_chunks(source: TensorSource, name: str) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows); a 0-d tensor is one chunk."""
    spec = source.spec(name)
    if not spec.shape:
        yield 0, source.read(name)
        return
    for first, stop in _row_ranges(spec):
        yield first, source.read_rows(name, first, stop)


def _row_ranges(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    row_elements = max(1, torch.Size(spec.shape[1:]).numel())
    step = max(1, CHUNK_ELEMENTS // row_elements)
    for first in range(0, spec.shape[0], step):
        yield first, min(first + step, spec.shape[0])


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
    if record.facts and len(record.facts) != len(specs):
        raise _misfit(record, f"facts about {len(record.facts)} of {len(specs)} sources")
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
