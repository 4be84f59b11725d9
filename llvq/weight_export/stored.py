"""A source whose packed weights are seen as another tool stores them: the reverse of unpacking.

The table of layouts is the one that checkpoints are read by, and every byte is made when it is
read, so a writer copies this source a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.calibration import FACTS
from llvq.checkpoints.packed_layer import scale_shapes, swap_nibbles, up
from llvq.checkpoints.packed_layouts import FULL_RANGE, Layout
from llvq.checkpoints.packed_scalars import decode_scale, stored_scale
from llvq.formats.layout import swizzle_scales
from llvq.formats.nvfp4 import BLOCK
from llvq.sources import PackedWeight, TensorSource, TensorSpec


class StoredSource:
    """A TensorSource of the tensors of a file in that layout.

    Packed weights `X.weight`, and facts beside them that the layout has a place for, become
    `X.<suffix>`; everything else stays as it is. Facts without a place are left out: who exports
    must have refused them. `full`: what an amax is divided by (Layout.global_is).
    """

    def __init__(self, source: TensorSource, layout: Layout, *, full: float = FULL_RANGE) -> None:
        self._source, self._layout, self._full = source, layout, full
        self._parts: dict[str, tuple[str, str]] = {}
        self._packed: dict[str, PackedWeight] = {}
        everything = set(source.names())
        for name in source.names():
            layer, _, last = name.rpartition(".")
            packed = source.packed(name)
            if packed is not None:
                self._packed[layer] = packed
                suffixes = self._suffixes(layer, everything)
                self._parts |= {f"{layer}.{suffix}": (layer, suffix) for suffix in suffixes}
            elif last not in FACTS:
                self._parts[name] = ("", name)

    def _suffixes(self, layer: str, names: set[str]) -> list[str]:
        layout = self._layout
        found = [layout.codes, layout.scales, layout.global_scale]
        found += [layout.sizes] if layout.sizes is not None else []
        if f"{layer}.input_scale" in names:
            found += [suffix for suffix, _ in layout.inputs]
            found += [suffix for suffix in layout.also if suffix == "alpha"]
        return found + [suffix for suffix, fact in layout.facts if f"{layer}.{fact}" in names]

    def layers(self) -> Sequence[str]:
        """The packed linears."""
        return tuple(self._packed)

    def inexact(self) -> int:
        """How many global scales have no number in this layout that reads back as they are."""
        return sum(not self._is_exact(packed.global_scale()) for packed in self._packed.values())

    def _is_exact(self, g: Tensor) -> bool:
        meaning = self._layout.global_is
        stored = stored_scale(g, meaning, self._full)
        return bool(decode_scale(stored, meaning, self._full) == g)

    def names(self) -> Sequence[str]:
        return tuple(self._parts)

    def spec(self, name: str) -> TensorSpec:
        layer, suffix = self._parts[name]
        layout = self._layout
        if not layer:
            return self._source.spec(name)
        if fact := dict(layout.facts).get(suffix):
            return self._source.spec(f"{layer}.{fact}")
        rows, columns = self._padded(layer)
        if suffix == layout.codes:
            return TensorSpec(torch.uint8, (rows, columns // 2))
        if suffix == layout.scales:
            return TensorSpec(torch.float8_e4m3fn, scale_shapes(layout, (rows, columns))[0])
        if suffix == layout.sizes:
            return TensorSpec(torch.int32, (4,))
        return TensorSpec(torch.float32, layout.scalar)

    def _padded(self, layer: str) -> tuple[int, int]:
        rows, columns = self._source.spec(f"{layer}.weight").shape
        return up(rows, self._layout.pad[0]), up(columns, self._layout.pad[1])

    def read(self, name: str) -> Tensor:
        spec = self.spec(name)
        layer, suffix = self._parts[name]
        if not layer:
            return self._source.read(name)
        if fact := dict(self._layout.facts).get(suffix):
            return self._source.read(f"{layer}.{fact}")
        if suffix == self._layout.codes:
            return self._codes(layer, 0, spec.shape[0])
        if suffix == self._layout.scales:
            return self._scales(layer).reshape(spec.shape)
        if suffix == self._layout.sizes:
            rows, columns = self._source.spec(f"{layer}.weight").shape
            return torch.tensor([rows, columns, *self._padded(layer)], dtype=torch.int32)
        return self._scalar(layer, suffix).reshape(spec.shape)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        layer, suffix = self._parts[name]
        if not layer:
            return self._source.read_rows(name, start, stop)
        if suffix == self._layout.codes:
            return self._codes(layer, start, stop)
        return self.read(name)[start:stop]

    def packed(self, name: str) -> None:
        """What is stored here is what is packed."""
        return None

    def _codes(self, layer: str, start: int, stop: int) -> Tensor:
        rows, columns = self._source.spec(f"{layer}.weight").shape
        last = min(stop, rows)
        codes = self._packed[layer].read_rows(min(start, last), last)[0]
        if self._layout.even_nibble == "high":
            codes = swap_nibbles(codes)
        _, wide = self._padded(layer)
        return F.pad(codes, (0, (wide - columns) // 2, 0, stop - start - codes.shape[0]))

    def _scales(self, layer: str) -> Tensor:
        """All block scales of a linear: a sixteenth of its elements."""
        rows, columns = self._source.spec(f"{layer}.weight").shape
        scales = self._packed[layer].read_rows(0, rows)[1]
        if self._layout.scale_order == "linear":
            return scales
        tall, wide = self._padded(layer)
        extra = (0, wide // BLOCK - columns // BLOCK, 0, tall - rows)
        return swizzle_scales(F.pad(scales.view(torch.uint8), extra).view(scales.dtype))

    def _scalar(self, layer: str, suffix: str) -> Tensor:
        """The global scale, the scale of the input, or LightX2V's product of both."""
        g = self._packed[layer].global_scale()
        if suffix == self._layout.global_scale:
            return stored_scale(g, self._layout.global_is, self._full)
        x = self._source.read(f"{layer}.input_scale")
        if suffix == "alpha":
            both = stored_scale(x, "reciprocal") * stored_scale(g, "reciprocal")
            return both.reciprocal()
        return stored_scale(x, dict(self._layout.inputs)[suffix])
