"""Norms that hold the smoothing factor of the linears behind them.

fold-smoothing multiplies the weight and the bias of a norm in the weight plan: the program has
neither the norm of the checkpoint nor the factor, and the file gets the norm as it is here.
"""

from __future__ import annotations

from collections import Counter

from llvq.artifact import Box
from llvq.errors import CheckpointError
from llvq.weight_export.linears import Node, QuantizedLinear, quantized_linears

FOLDED = "multiply"
QUANTIZES = ("llvq.quantize.default", "llvq.quantize_lowrank.default")
CAST, LAYER_NORM = "aten.to.dtype", "aten.layer_norm.default"
NORM_WEIGHT = 2


def smoothed_norms(program: Box) -> dict[str, str]:
    """Weight of the program -> the factor that it was multiplied by.

    Raises CheckpointError for a norm that is there without the factor too, or with another one:
    the file has one norm for all that read it.
    """
    weights = program.manifest["weights"]
    made = Counter(source for record in weights.values() for source in record["sources"])
    found = {}
    for target, record in weights.items():
        if record["op"] == FOLDED:
            norm, *factors = record["sources"]
            if made[norm] > 1 or len(factors) != 1:
                raise _several(norm, program)
            found[target] = factors[0]
    return found


def factors_in_norms(program: Box) -> dict[str, str]:
    """Layer (`blocks.0.cross_attn.q`) -> the factor that the norm before it holds.

    The graphs are asked: a factor of the same values may be elsewhere too, under the same name.
    """
    norms = smoothed_norms(program)
    found: dict[str, str] = {}
    for linear in quantized_linears(program) if norms else ():
        factor = norms.get(_norm_before(linear))
        if factor is not None:
            found |= dict.fromkeys(linear.layers, factor)
    return found


def _norm_before(linear: QuantizedLinear) -> str:
    """The weight of the norm whose value is quantized for the linear, empty if none is."""
    node = linear.maker(linear.operand(0))
    for passed in (QUANTIZES, (CAST,)):
        if node["target"] in passed:
            node = _argument(linear, node, 0)
    if node["target"] != LAYER_NORM or len(node["args"]) <= NORM_WEIGHT:
        return ""
    weight = node["args"][NORM_WEIGHT]
    return str(linear.nodes[weight["node"]]["target"]) if weight else ""


def _argument(linear: QuantizedLinear, node: Node, index: int) -> Node:
    return linear.nodes[node["args"][index]["node"]]


def _several(norm: str, program: Box) -> CheckpointError:
    return CheckpointError(
        f"{norm} is in the program in more than one form",
        where=str(program.path),
        because="what reads it is smoothed by one factor, by others or not at all, and the file "
        "has one norm",
        fix="quantize without --calibrate, or with --calibrate modelopt:max",
    )
