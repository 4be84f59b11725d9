"""Static activation scales of a program: which tensor each quantized linear's input is scaled by.

Layers with equal scales share one tensor, so the graphs are asked and not the names.
"""

from __future__ import annotations

from torch import Tensor

from llvq.artifact import Box
from llvq.checkpoints.packed_scalars import neighbours
from llvq.errors import CheckpointError
from llvq.formats.nvfp4 import E4M3_MAX, FOUR_OVER_SIX_SCALE_MAX
from llvq.weight_export.linears import X_GLOBAL, QuantizedLinear, quantized_linears

FACT = ".input_scale"


def input_scales(program: Box) -> dict[str, str]:
    """Layer (`blocks.0.ffn.0`) -> weight of the program that holds the scale of its input.

    Empty if activations are scaled at every call. Raises CheckpointError if a program that has
    static scales does not tell which is a layer's.
    """
    weights = program.manifest["weights"]
    scales = {
        t for t, record in weights.items() if any(s.endswith(FACT) for s in record["sources"])
    }
    found: dict[str, str] = {}
    for linear in quantized_linears(program) if scales else ():
        scale = _scale_of(linear, scales)
        for layer in linear.layers:
            if scale is None:
                raise _untold(layer, program)
            found[layer] = scale
    return found


def as_stored_elsewhere(scale: Tensor, activation_rule: str) -> Tensor:
    """A static scale of a program as amax/(6*448), fp32 [], which is what other tools hold.

    Four-over-six is defined with amax/(6*256). The result is the number that llvq, reading it,
    makes this very scale of again.
    """
    if activation_rule != "four_over_six":
        return scale
    factor = E4M3_MAX / FOUR_OVER_SIX_SCALE_MAX
    guess = scale / factor
    return next((c for c in neighbours(guess) if c * factor == scale), guess)


def _scale_of(linear: QuantizedLinear, scales: set[str]) -> str | None:
    """The scale itself, or the one that whatever makes the value is given."""
    node = linear.operand(X_GLOBAL)
    if node["target"] in scales:
        return str(node["target"])
    node = linear.maker(node)
    given = (*node["args"], *node["kwargs"].values())
    inputs = [value["node"] for value in given if isinstance(value, dict) and "node" in value]
    targets = [linear.nodes[name]["target"] for name in inputs]
    return next((str(target) for target in targets if target in scales), None)


def _untold(layer: str, program: Box) -> CheckpointError:
    return CheckpointError(
        f"the program does not tell the input scale of {layer}",
        where=str(program.path),
        because="other layers have static scales, and this one's is not beside its linear",
        fix="quantize again, with or without --calibrate for all layers",
    )
