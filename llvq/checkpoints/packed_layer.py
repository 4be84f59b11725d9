"""One packed linear of a checkpoint, seen in llvq's own layout. Rows are read in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from llvq.checkpoints.packed_layouts import Layout
from llvq.checkpoints.packed_scalars import decode_scale
from llvq.errors import CheckpointError
from llvq.formats.layout import unswizzle_scales
from llvq.formats.nvfp4 import BLOCK
from llvq.sources import TensorSource, TensorSpec

TILE_ROWS, TILE_BLOCKS = 128, 4
# Later fouroversix has six numbers, one of which tells how the rest lies; LongLive's has four.
SIZES = (4,)


@dataclass(frozen=True)
class PackedLayer:
    """A linear `name` [rows, columns] as `layout` holds it. Is an llvq.sources.PackedWeight."""

    source: TensorSource
    path: Path
    layout: Layout
    name: str
    rows: int
    columns: int
    full: float

    @property
    def spec(self) -> TensorSpec:
        """Of its values."""
        return TensorSpec(torch.bfloat16, (self.rows, self.columns))

    def tensor(self, suffix: str) -> str:
        return f"{self.name}.{suffix}"

    def global_scale(self) -> Tensor:
        layout = self.layout
        stored = read_scalar(self.source, self.tensor(layout.global_scale), self.path)
        return decode_scale(stored, layout.global_is, self.full)

    def read_rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        codes = self.source.read_rows(self.tensor(self.layout.codes), start, stop)
        codes = codes[:, : self.columns // 2]
        if self.layout.even_nibble == "high":
            codes = swap_nibbles(codes)
        return codes.contiguous(), self._scales(start, stop).contiguous()

    def _scales(self, start: int, stop: int) -> Tensor:
        name, blocks = self.tensor(self.layout.scales), self.columns // BLOCK
        if self.layout.scale_order == "linear":
            return self.source.read_rows(name, start, stop)
        # All rows of tiles that hold these rows; a row of tiles is 512 bytes for each 4 blocks.
        first, last = start // TILE_ROWS, -(-stop // TILE_ROWS)
        shape = self.source.spec(name).shape
        tiles = prod(shape) // (TILE_ROWS * TILE_BLOCKS) // -(-self.padded_rows // TILE_ROWS)
        height = TILE_ROWS * TILE_BLOCKS * tiles // prod(shape[1:])
        flat = self.source.read_rows(name, first * height, last * height).reshape(-1)
        scales = unswizzle_scales(flat, (last - first) * TILE_ROWS, tiles * TILE_BLOCKS)
        return scales[start - first * TILE_ROWS : stop - first * TILE_ROWS, :blocks]

    @property
    def padded_rows(self) -> int:
        return up(self.rows, self.layout.pad[0])


def open_layer(
    source: TensorSource, name: str, layout: Layout, *, full: float, path: Path
) -> PackedLayer:
    """Check the tensors of one packed linear. Raises CheckpointError naming the wrong one.

    The block scales themselves are not read.
    """
    names = set(source.names())
    for suffix in (layout.codes, layout.scales, layout.global_scale, layout.sizes):
        if suffix is not None and f"{name}.{suffix}" not in names:
            raise CheckpointError(
                f"{name}.{suffix} is missing",
                where=str(path),
                because=f"{layout.title} has it beside {name}.{layout.codes}",
                fix="download or export the checkpoint again",
            )
    codes = f"{name}.{layout.codes}"
    shape = check_tensor(source, codes, torch.uint8, path).shape
    if len(shape) != 2 or 0 in shape:
        raise misfit(codes, shape, "two dimensions above 0: [N, K/2]", path)
    rows, columns = _sizes(source, name, layout, path)
    padded = (up(rows, layout.pad[0]), up(columns, layout.pad[1]))
    if shape != (padded[0], padded[1] // 2):
        raise misfit(codes, shape, f"{[padded[0], padded[1] // 2]} of [{rows}, {columns}]", path)
    if columns % BLOCK:
        raise misfit(codes, shape, f"K = {columns} to be a multiple of {BLOCK}", path)
    scales = f"{name}.{layout.scales}"
    found = check_tensor(source, scales, torch.float8_e4m3fn, path).shape
    if found not in (wanted := scale_shapes(layout, padded)):
        raise misfit(scales, found, " or ".join(str(list(w)) for w in wanted), path)
    read_scalar(source, f"{name}.{layout.global_scale}", path)
    return PackedLayer(source, path, layout, name, rows, columns, full)


def _sizes(source: TensorSource, name: str, layout: Layout, path: Path) -> tuple[int, int]:
    """(N, K) before padding: as the file says, or N as the bias says."""
    height, half = source.spec(f"{name}.{layout.codes}").shape
    if layout.sizes is not None:
        stated = f"{name}.{layout.sizes}"
        shape = check_tensor(source, stated, torch.int32, path).shape
        if shape != SIZES:
            raise misfit(stated, shape, "[4]: N, K, padded N, padded K", path)
        rows, columns, *padded = (int(n) for n in source.read(stated))
        if padded != [height, 2 * half] or min(rows, columns) < 1:
            found = [rows, columns, *padded]
            raise misfit(stated, found, f"N, K, {height}, {2 * half}, as the codes are", path)
        return rows, columns
    bias = f"{name}.bias"
    if layout.pad[0] > 1 and bias in source.names():
        rows = prod(source.spec(bias).shape)
        return (rows if up(rows, layout.pad[0]) == height else height), 2 * half
    return height, 2 * half


def scale_shapes(layout: Layout, padded: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """The shapes that the block scales of a weight [N, K], padded, may have."""
    rows, blocks = padded[0], padded[1] // BLOCK
    if layout.scale_order == "linear":
        return ((rows, blocks),)
    tall, wide = up(rows, TILE_ROWS), up(blocks, TILE_BLOCKS)
    if layout.scale_order == "padded":
        return tuple(dict.fromkeys(((tall, wide), (tall, up(blocks, 16)))))
    return ((tall * wide,),) if layout.scale_order == "flat" else ((tall // 4, wide * 4),)


def read_scalar(source: TensorSource, name: str, path: Path) -> Tensor:
    """A scale that must be fp32, one number, finite and above 0 (an amax may be 0)."""
    shape = check_tensor(source, name, torch.float32, path).shape
    if prod(shape) != 1 or len(shape) > 1:
        raise misfit(name, shape, "[] or [1]", path)
    value = source.read(name).reshape(())
    if value.isfinite() and (value > 0 or (value == 0 and name.endswith("amax"))):
        return value
    raise CheckpointError(
        f"{name} is {value.item()}",
        where=str(path),
        because="a scale is finite and above 0",
        fix="the tool that wrote the checkpoint has divided by 0; quantize that weight again",
    )


def check_tensor(source: TensorSource, name: str, dtype: torch.dtype, path: Path) -> TensorSpec:
    spec = source.spec(name)
    if spec.dtype == dtype:
        return spec
    raise CheckpointError(
        f"{name} is {spec.dtype}, expected {dtype}",
        where=str(path),
        because="the linear is packed in NVFP4 by its other tensors",
        fix="download or export the checkpoint again",
    )


def misfit(name: str, found: object, expected: str, path: Path) -> CheckpointError:
    shown = list(found) if isinstance(found, tuple) else found
    return CheckpointError(
        f"{name} is {shown}, expected {expected}",
        where=str(path),
        because="the tensors of one packed linear do not fit each other",
        fix="download or export the checkpoint again",
    )


def swap_nibbles(codes: Tensor) -> Tensor:
    return (codes >> 4) | (codes << 4)


def up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
