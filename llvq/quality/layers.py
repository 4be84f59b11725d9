"""The error of each quantized linear: of its weight, and of its output on the BF16 run's inputs.

Outputs are measured while the BF16 program runs: behind each linear that is NVFP4 in the artifact
a probe computes `nvfp4_linear(quantize(x), w, bias)` on the same x, so the errors of layers do not
add up. Smoothing, static scale and low-rank branch of a layer belong to it, in both errors. The
arithmetic is the reference's, whatever the target. Signals include the bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from llvq.dialect import nvfp4_linear, quantize
from llvq.formats import nvfp4
from llvq.quality.calls import CallErrors
from llvq.quality.layer_facts import Beside, beside
from llvq.quality.metrics import NOTHING, Energies, energies
from llvq.quality.pair import Pair
from llvq.runtime.executable import Executable

LINEAR = torch.ops.aten.linear.default
ROWS = 4096  # of a weight at once, so that memory does not follow the largest


@dataclass(frozen=True)
class QuantizedLayer:
    """One linear of the checkpoint and its rows [first, last) in a stacked weight of the box."""

    name: str
    source: str
    target: str
    index: int
    first: int
    last: int
    beside: Beside = field(default_factory=Beside)

    @property
    def kind(self) -> str:
        return layer_kind(self.name)

    def packed(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Its codes [N, K/2], scales [N, K/16] and global scale [1]."""
        rows = slice(self.first, self.last)
        return (
            tensors[f"{self.target}.codes"][rows],
            tensors[f"{self.target}.scales"][rows],
            tensors[f"{self.target}.global_scale"][self.index : self.index + 1],
        )


@dataclass
class LayerError:
    """What was found out about one layer. `output` stays empty for a layer that never ran."""

    layer: QuantizedLayer
    weight: Energies
    output: CallErrors = field(default_factory=CallErrors)

    @property
    def kind(self) -> str:
        return self.layer.kind


def layer_kind(name: str) -> str:
    """`dit.blocks.7.self_attn.q` -> `self_attn.q`: what the layers of all blocks share."""
    return re.sub(r"^(.*\.)?blocks\.\d+\.", "", name)


def quantized_layers(pair: Pair) -> list[QuantizedLayer]:
    """Every NVFP4 linear of the box that can be measured, the parts of a fused group one by one."""
    layers, tensors = [], pair.box.tensors()
    for target, record in pair.box.manifest["weights"].items():
        if record["op"] != "quantize":
            continue
        first, known = 0, record.get("facts") or [{}] * len(record["sources"])
        for index, (source, facts) in enumerate(zip(record["sources"], known, strict=True)):
            last = first + pair.model.source.spec(source).shape[0]
            name, rows = source.removesuffix(".weight"), slice(first, last)
            found = beside(facts, target, index, rows, tensors, pair.model.source)
            if found is not None:
                layers.append(QuantizedLayer(name, source, target, index, first, last, found))
            first = last
    return layers


def unmeasured(pair: Pair) -> int:
    """How many NVFP4 linears of the box are not among `quantized_layers`."""
    records = pair.box.manifest["weights"].values()
    packed = sum(len(record["sources"]) for record in records if record["op"] == "quantize")
    return packed - len(quantized_layers(pair))


def weight_errors(pair: Pair) -> Iterator[LayerError]:
    """Compare weights, one layer at a time and a few rows of it."""
    tensors = pair.box.tensors()
    for layer in quantized_layers(pair):
        codes, scales, g = layer.packed(tensors)
        total = NOTHING
        for start in range(0, layer.last - layer.first, ROWS):
            rows = slice(start, start + ROWS)
            reference = pair.model.source.read_rows(layer.source, start, start + ROWS)
            value = nvfp4.dequantize(codes[rows], scales[rows], g, torch.float32)
            value = layer.beside.whole(value, start)
            total += energies(reference[: value.shape[0]], value)
        yield LayerError(layer, total)


class Activation:
    """The value that was quantized last, and how: q, k and v read the same one."""

    def __init__(self, block_rule: str) -> None:
        self.block_rule = block_rule
        self._of: tuple[Tensor | None, ...] = ()
        self._found: tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None = None

    def packed(self, x: Tensor, beside: Beside) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """x smoothed, and quantized."""
        key = (x, beside.smooth, beside.scale)
        same = len(self._of) == len(key) and all(a is b for a, b in zip(self._of, key, strict=True))
        if self._found is None or not same:
            smoothed = beside.smoothed(x)
            packed = quantize.reference(smoothed, self.block_rule, beside.scale)
            self._of, self._found = key, (smoothed, packed)
        return self._found


class Probe(nn.Module):
    """Stands behind a BF16 linear and measures what the NVFP4 linear would have given."""

    def __init__(
        self, error: LayerError, stage: str, tensors: Mapping[str, Tensor], activation: Activation
    ) -> None:
        super().__init__()
        self.error, self.stage = error, stage
        self.tensors, self.activation = tensors, activation

    def forward(self, x: Tensor, bias: Tensor | None, reference: Tensor) -> None:
        """x [..., K]; reference [..., N] = linear(x, w, bias)."""
        weight, rows = self.error.layer.packed(self.tensors), [reference.shape[-1]]
        known = self.error.layer.beside
        smoothed, packed = self.activation.packed(x, known)
        value = nvfp4_linear.reference(*packed, *weight, bias, rows, reference.dtype)
        value = known.with_branch(value, smoothed)
        self.error.output.add(self.stage, energies(reference, value))


def add_probes(executable: Executable, errors: list[LayerError], pair: Pair) -> None:
    """Put a probe behind every linear that is in `errors`, in all stages, in place."""
    tensors = pair.box.tensors(device=executable.device)
    activation = Activation(pair.recipe.linear.activation_rule)
    by_source = {error.layer.source: error for error in errors}
    for name, stage in executable.stages.items():
        _add_to(stage.graph, name, by_source, tensors, activation)


def _add_to(
    gm: GraphModule,
    stage: str,
    errors: Mapping[str, LayerError],
    tensors: Mapping[str, Tensor],
    activation: Activation,
) -> None:
    for number, node in enumerate(list(gm.graph.nodes)):
        if node.op != "call_function" or node.target is not LINEAR:
            continue
        x, weight, bias = (*node.args, None)[:3]
        if str(weight.target) in errors:
            probe = Probe(errors[weight.target], stage, tensors, activation)
            gm.add_submodule(f"probe_{number}", probe)
            with gm.graph.inserting_after(node):
                gm.graph.call_module(f"probe_{number}", (x, bias, node))
    gm.recompile()
