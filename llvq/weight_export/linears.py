"""The quantized linears of a program, as its graphs tell them: what each reads, and from where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llvq.artifact import Box

PART = "dit."
LINEARS = ("llvq.nvfp4_linear.default", "llvq.nvfp4_linear_lowrank.default")
X_GLOBAL, W_CODES = 2, 3

Node = Mapping[str, Any]


@dataclass(frozen=True)
class QuantizedLinear:
    """One call. `nodes`: all of its graph, by name; `layers`: linears that its weight stacks."""

    nodes: Mapping[str, Node]
    node: Node
    layers: tuple[str, ...]

    def operand(self, index: int) -> Node:
        return self.nodes[self.node["args"][index]["node"]]

    def maker(self, node: Node) -> Node:
        """The call that gives a value, behind the choice of one of its outputs."""
        if node["target"] != "operator.getitem":
            return node
        return self.nodes[node["args"][0]["node"]]


def quantized_linears(program: Box) -> Iterator[QuantizedLinear]:
    """Of all stages: a linear that two stages call comes twice."""
    weights = program.manifest["weights"]
    for stage in program.manifest["stages"]:
        nodes = {node["name"]: node for node in program.graph(stage)["nodes"]}
        for node in nodes.values():
            if node["target"] in LINEARS:
                codes = nodes[node["args"][W_CODES]["node"]]["target"]
                sources = weights[codes.removesuffix(".codes")]["sources"]
                yield QuantizedLinear(nodes, node, tuple(layer_of(source) for source in sources))


def layer_of(weight: str) -> str:
    """`blocks.0.ffn.0` of `dit.blocks.0.ffn.0.weight`."""
    return weight.removeprefix(PART).removesuffix(".weight")
