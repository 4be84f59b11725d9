"""What is known of a linear beyond its weight: static activation scale, smoothing, low rank.

A checkpoint that brings such facts (an export of another quantizer, or what `--calibrate` wrote)
names them after the layer, whatever its own names are; a pass that quantizes the layer reads this
table, and never a tensor.

`LAYER.input_scale` fp32 [] is the decode scale of the layer's input, amax/(6*448);
`LAYER.pre_quant_scale` [K] multiplies the input before it is quantized;
`LAYER.lora_down` [r, K] and `LAYER.lora_up` [N, r] add (x @ down.T) @ up.T in bf16, where x is the
input after `pre_quant_scale`; `LAYER.weight_amax` [N, K/16] is the largest magnitude that each
block of the weight is scaled for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llvq.errors import CheckpointError
from llvq.formats.nvfp4 import BLOCK
from llvq.sources import TensorSource

FACTS = ("input_scale", "pre_quant_scale", "lora_down", "lora_up", "weight_amax")
# Facts about the layer's input: siblings that read one input mostly share them, to the bit.
SHARED = ("input_scale", "pre_quant_scale")


@dataclass(frozen=True)
class LayerFacts:
    """Names of tensors in the source, or None. Layers with equal facts name the same tensor."""

    input_scale: str | None = None
    pre_quant_scale: str | None = None
    lora_down: str | None = None
    lora_up: str | None = None
    weight_amax: str | None = None
    rank: int = 0
    packed: bool = False
    """Whether the weight is stored in NVFP4: then smoothing and low rank are taken out already."""


Calibration = Mapping[str, LayerFacts]


def calibration_of(source: TensorSource) -> dict[str, LayerFacts]:
    """The facts that a source holds, by module path. Reads the small ones, to find equal ones.

    Raises CheckpointError for facts of one layer that do not fit each other or its weight.
    """
    names = set(source.names())
    layers = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] in FACTS}
    first_with: dict[tuple[str, bytes], str] = {}
    table = {}
    for layer in sorted(layers):
        found = {fact: f"{layer}.{fact}" for fact in FACTS if f"{layer}.{fact}" in names}
        _check(source, layer, found, names)
        shared = {
            fact: first_with.setdefault((fact, _content(source, found[fact])), found[fact])
            for fact in SHARED
            if fact in found
        }
        rank = _rank(source, found)
        packed = source.packed(f"{layer}.weight") is not None
        table[layer] = LayerFacts(**(found | shared), rank=rank, packed=packed)
    return table


def _content(source: TensorSource, name: str) -> bytes:
    return source.read(name).float().numpy().tobytes()


def _rank(source: TensorSource, found: Mapping[str, str]) -> int:
    shape = source.spec(found["lora_down"]).shape if "lora_down" in found else ()
    return shape[0] if shape else 0


def _check(source: TensorSource, layer: str, found: Mapping[str, str], names: set[str]) -> None:
    if f"{layer}.weight" not in names:
        raise _misfit(layer, f"{', '.join(found.values())} there, {layer}.weight not")
    if ("lora_down" in found) != ("lora_up" in found):
        raise _misfit(layer, "one half of the low-rank branch is missing")
    shape = source.spec(f"{layer}.weight").shape
    if len(shape) != 2:
        raise _misfit(layer, f"{layer}.weight is {list(shape)}, and only linears have such facts")
    rows, columns = shape
    rank = _rank(source, found)
    expected = {
        "input_scale": (),
        "pre_quant_scale": (columns,),
        "lora_down": (rank, columns),
        "lora_up": (rows, rank),
        "weight_amax": (rows, columns // BLOCK),
    }
    for fact, name in found.items():
        shape = source.spec(name).shape
        if shape != expected[fact]:
            raise _misfit(layer, f"{name} is {list(shape)}, expected {list(expected[fact])}")


def _misfit(layer: str, because: str) -> CheckpointError:
    return CheckpointError(
        f"what is known of {layer} does not fit together",
        because=because,
        fix="calibrate again, or export the checkpoint again with the tool that made it",
    )
