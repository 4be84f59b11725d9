"""The denoiser's weights of a program, under the names of Wan's own files.

The weight table of the manifest says which target each tensor of the checkpoint went to; stacked
matrices and branches are taken apart again, each matrix with the global scale it has kept. A norm
that holds a smoothing factor stays as the program has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llvq.artifact import Box
from llvq.artifact.manifest import damaged
from llvq.checkpoints.safetensors_file import SafetensorsSource
from llvq.checkpoints.specs import dit_specs
from llvq.errors import CheckpointError
from llvq.formats import nvfp4
from llvq.models.config import DitConfig
from llvq.sources import TensorSource, TensorSpec
from llvq.weight_export.input_scales import as_stored_elsewhere, input_scales
from llvq.weight_export.linears import PART
from llvq.weight_export.smoothed_norms import FOLDED
from llvq.weight_export.smoothing import Place, smoothing_of

# Ops that keep the rows of their sources; others compute something else from them.
PLACED = ("copy", "concat", "quantize")


@dataclass(frozen=True)
class PackedRows:
    """Rows of a packed target: one of the matrices it stacks. Is an llvq.sources.PackedWeight."""

    weights: TensorSource
    target: str
    index: int
    first: int

    def global_scale(self) -> Tensor:
        return self.weights.read(f"{self.target}.global_scale")[self.index].reshape(())

    def read_rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        rows = (self.first + start, self.first + stop)
        return (
            self.weights.read_rows(f"{self.target}.codes", *rows),
            self.weights.read_rows(f"{self.target}.scales", *rows),
        )


class ProgramSource:
    """A TensorSource over a program: the denoiser's tensors, and facts about packed linears X.

    These are `X.input_scale` where static, and what X was quantized behind: `X.pre_quant_scale`,
    `X.lora_down` and `X.lora_up`. A factor that a norm holds is not there; the norm reads as the
    program has it, with the factor. Raises CheckpointError if a tensor of the denoiser is not in
    the program as it was.
    """

    def __init__(self, program: Box) -> None:
        self._path = program.path
        names = [name for name in program.manifest["files"] if name.startswith("weights/")]
        self._weights = SafetensorsSource(program.path, [program.path / n for n in sorted(names)])
        self.config = dit_config(program)
        shapes = dit_specs(self.config)
        self._specs = {name: TensorSpec(torch.bfloat16, shape) for name, shape in shapes.items()}
        own = {PART + name for name in self._specs}
        self._rows: dict[str, tuple[str, int]] = {}
        self._packed: dict[str, PackedRows] = {}
        for target, record in program.manifest["weights"].items():
            if record["op"] in (*PLACED, FOLDED) and own & set(record["sources"]):
                self._place(target, record)
        missing = self._specs.keys() - self._rows.keys() - self._packed.keys()
        if missing:
            raise CheckpointError(
                f"the program has no weight {min(missing)}",
                where=str(program.path),
                because="a pass has made it into something else, or it is of another model",
                fix="quantize the checkpoint again with a recipe that keeps its weights apart",
            )
        for name, place in smoothing_of(program, shapes).items():
            self._place_fact(name, place)
        self._inputs = input_scales(program)
        self._activation_rule = program.manifest["recipe"]["linear"]["activation_rule"]

    def _place(self, target: str, record: Mapping[str, Any]) -> None:
        first = 0
        sources = record["sources"][:1] if record["op"] == FOLDED else record["sources"]
        for index, source in enumerate(sources):
            name = source.removeprefix(PART)
            if name not in self._specs:
                raise damaged(
                    f"{target} is made of {source}",
                    where=str(self._path),
                    because="the denoiser has no such tensor",
                )
            if record["op"] == "quantize":
                self._packed[name] = PackedRows(self._weights, target, index, first)
            else:
                spec = self._weights.spec(target)
                self._rows[name] = (target, first)
                self._specs[name] = TensorSpec(spec.dtype, self._specs[name].shape)
            first += self._specs[name].shape[0]
        stored = target + (".codes" if record["op"] == "quantize" else "")
        held = self._weights.spec(stored).shape
        if held[:1] != (first,):
            raise damaged(
                f"{stored} is {list(held)}",
                where=str(self._path),
                because=f"its sources have {first} rows",
            )

    def _place_fact(self, name: str, place: Place) -> None:
        held = self._weights.spec(place.target)
        last = place.first + place.shape[0]
        if held.shape[1:] != place.shape[1:] or held.shape[:1] < (last,):
            raise damaged(
                f"{place.target} is {list(held.shape)}",
                where=str(self._path),
                because=f"{name} is {list(place.shape)} from row {place.first} of it",
            )
        self._rows[name] = (place.target, place.first)
        self._specs[name] = TensorSpec(held.dtype, place.shape)

    def names(self) -> Sequence[str]:
        return (*self._specs, *(f"{layer}.input_scale" for layer in self._inputs))

    def spec(self, name: str) -> TensorSpec:
        if name in self._specs:
            return self._specs[name]
        return TensorSpec(torch.float32, ())

    def read(self, name: str) -> Tensor:
        if name in self._specs:
            return self.read_rows(name, 0, self._specs[name].shape[0])
        target = self._inputs[name.removesuffix(".input_scale")]
        stored = self._weights.read(target).to(torch.float32).reshape(())
        return as_stored_elsewhere(stored, self._activation_rule)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        if name in self._packed:
            packed = self._packed[name]
            codes, scales = packed.read_rows(start, stop)
            return nvfp4.dequantize(codes, scales, packed.global_scale(), torch.bfloat16)
        target, first = self._rows[name]
        return self._weights.read_rows(target, first + start, first + stop)

    def packed(self, name: str) -> PackedRows | None:
        return self._packed.get(name)


def dit_config(program: Box) -> DitConfig:
    """The sizes of the denoiser, from the manifest. Raises ArtifactError."""
    stated = program.manifest["model"].get("dit")
    try:
        config = DitConfig(**{**stated, "patch_size": tuple(stated["patch_size"])})
        if config.num_layers <= len(program.manifest["weights"]):
            return config
        because = f"{config.num_layers} layers are more than the program has weights"
    except (TypeError, KeyError) as error:
        because = str(error)
    raise damaged("model.dit is no denoiser", where=str(program.path), because=because)
