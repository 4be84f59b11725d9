"""Checkpoints whose linears another tool has packed in NVFP4, read as they are.

A packed linear `X` becomes `X.weight` [N, K] whose values are bf16 and whose bytes are handed out
by `packed`; what the file says of its input becomes facts beside it (llvq.calibration).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llvq.checkpoints.packed_layer import PackedLayer, open_layer, read_scalar
from llvq.checkpoints.packed_layouts import Layout, Meaning
from llvq.checkpoints.packed_markers import check_markers
from llvq.checkpoints.packed_recognition import full_range, recognise
from llvq.checkpoints.packed_scalars import decode_scale
from llvq.errors import CheckpointError
from llvq.formats import nvfp4
from llvq.sources import TensorSource, TensorSpec

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
INPUT_SCALE = TensorSpec(torch.float32, ())


def unpack(
    source: TensorSource,
    metadata: Mapping[str, object],
    path: Path,
    *,
    layout: str | None = None,
) -> tuple[TensorSource, tuple[str, ...]]:
    """The source with its packed linears seen as weights, and a note; as it is if there are none.

    `metadata`: what the file says in words. `layout`: the name of the layout, where the file leaves
    it open. Raises CheckpointError for a file that is ambiguous, mixed, or does not fit.
    """
    chosen = recognise(source, metadata, path, asked=layout)
    if chosen is None:
        return source, ()
    check_markers(source, metadata, path)
    packed = PackedSource(source, chosen, path, full=full_range(chosen, metadata, path))
    return packed, (packed.note(),)


class PackedSource:
    """A TensorSource over the tensors of a file in that layout."""

    def __init__(self, source: TensorSource, layout: Layout, path: Path, *, full: float) -> None:
        self._source, self._layout, self._path = source, layout, path
        self._layers: dict[str, PackedLayer] = {}
        self._inputs: dict[str, tuple[str, Meaning]] = {}
        self._kept: dict[str, str] = {}
        for name in source.names():
            layer, _, suffix = name.rpartition(".")
            if self._holds_codes(layer, name):
                opened = open_layer(source, layer, layout, full=full, path=path)
                self._layers[f"{layer}.weight"] = opened
            elif suffix not in layout.suffixes:
                self._keep(name)
        for weight in self._layers:
            self._add_facts(weight.removesuffix(".weight"))
        self._refuse_orphans()

    def _holds_codes(self, layer: str, name: str) -> bool:
        """Whether a tensor is the codes of a linear: by its name, or by what is beside it."""
        if name != f"{layer}.{self._layout.codes}" or not layer:
            return False
        if self._layout.codes != "weight" or self._source.spec(name).dtype == torch.uint8:
            return True
        beside = {f"{layer}.{s}" for s in (self._layout.scales, self._layout.global_scale)}
        return not beside.isdisjoint(self._source.names())

    def _keep(self, name: str) -> None:
        if self._source.spec(name).dtype in FP8:
            raise CheckpointError(
                f"{name} is {self._source.spec(name).dtype}",
                where=str(self._path),
                because=f"the file is {self._layout.title}, and llvq reads no FP8 weights beside",
                fix="export it with these layers in BF16",
            )
        self._kept[name] = name

    def _add_facts(self, layer: str) -> None:
        names = set(self._source.names())
        for suffix, meaning in self._layout.inputs:
            if f"{layer}.{suffix}" in names:
                read_scalar(self._source, f"{layer}.{suffix}", self._path)
                self._inputs[f"{layer}.input_scale"] = (f"{layer}.{suffix}", meaning)
                break
        for suffix, fact in self._layout.facts:
            if f"{layer}.{suffix}" in names:
                self._kept[f"{layer}.{fact}"] = f"{layer}.{suffix}"

    def _refuse_orphans(self) -> None:
        for name in self._source.names():
            layer, _, suffix = name.rpartition(".")
            if suffix in self._layout.suffixes and f"{layer}.weight" not in self._layers:
                raise CheckpointError(
                    f"{name} belongs to no packed weight",
                    where=str(self._path),
                    because=f"{self._layout.title} would have {layer}.{self._layout.codes} in U8",
                    fix="download or export the checkpoint again",
                )

    def note(self) -> str:
        """What was recognised, in words."""
        plain = [n for n in self._kept if n.endswith(".weight") and len(self.spec(n).shape) == 2]
        dtypes = sorted({str(self.spec(n).dtype).removeprefix("torch.") for n in plain})
        inputs = "static input scales" if self._inputs else "no input scales"
        if 0 < len(self._inputs) < len(self._layers):
            inputs = f"static input scales for {len(self._inputs)}"
        others = f", {len(plain)} in {' and '.join(dtypes)}" if plain else ""
        count = f"{len(self._layers)} linears packed{others}"
        return f"recognised: {self._layout.title}, {count}, {inputs}"

    def names(self) -> Sequence[str]:
        return (*self._layers, *self._inputs, *self._kept)

    def spec(self, name: str) -> TensorSpec:
        if name in self._layers:
            return self._layers[name].spec
        return INPUT_SCALE if name in self._inputs else self._source.spec(self._kept[name])

    def read(self, name: str) -> Tensor:
        if name in self._layers:
            return self.read_rows(name, 0, self._layers[name].rows)
        if name in self._inputs:
            stored, meaning = self._inputs[name]
            return decode_scale(read_scalar(self._source, stored, self._path), meaning)
        return self._source.read(self._kept[name])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        if name in self._layers:
            layer = self._layers[name]
            codes, scales = layer.read_rows(start, stop)
            return nvfp4.dequantize(codes, scales, layer.global_scale(), torch.bfloat16)
        if name in self._inputs:
            return self.read(name)  # one number has no rows
        return self._source.read_rows(self._kept[name], start, stop)

    def packed(self, name: str) -> PackedLayer | None:
        return self._layers.get(name)
