"""A program: FX graphs on `meta` weights, the level they are legal at, and the plans beside them.

Nothing here holds a weight. Graphs name weights by their place in the captured module; the
weight plan says how each is made from the checkpoint, the state plan what lives between calls.
"""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from llvq import graphs
from llvq.dialect.ring_ops import BORDER
from llvq.graphs.write import module_path, source_line
from llvq.runtime.contract import InputSpec
from llvq.weights import WeightRecord


class Level(IntEnum):
    """The ladder. A pass climbs at most one rung; `passes/spec.py` says what is legal on each."""

    CAPTURED = 0
    CANONICAL = 1
    QUANTIZED = 2
    FUSED = 3
    CACHED = 4
    STAGED = 5
    LOWERED = 6


@dataclass(frozen=True)
class KvState:
    """The cached keys and values of one layer: graph inputs that hold the history, and the
    outputs that hold the chunk's own."""

    layer: int
    history_k: str
    history_v: str
    present_k: str
    present_v: str


@dataclass(frozen=True)
class LoopState:
    """A tensor that one call returns and the next takes: output name -> input name."""

    input: str
    output: str


@dataclass(frozen=True)
class KvPool:
    """The page pool of the rewritten program: one page per chunk, for every layer.

    `kept_slots` is the size of the pool beside it, in `dtype`, for chunks that must not be rounded.
    """

    kv_format: str
    layers: int
    slots: int
    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    inputs: tuple[str, ...]
    kept_slots: int = 0


@dataclass(frozen=True)
class Ring:
    """The ring of one convolution of a streamed decoder; `dialect.ring_ops` says what that is.

    It is the input `decode_state.<index>`. `weight` names the convolution, `frame` is [H, W, C]
    without the border, of which there are `frames` in a call and `context` before them. `rate` and
    `skip` say which frames of the video go in.
    """

    index: int
    weight: str
    frame: tuple[int, int, int]
    frames: int
    context: int
    dtype: torch.dtype
    rate: int
    skip: int

    @property
    def spec(self) -> InputSpec:
        """What it is in the contract of a stage."""
        height, width, channels = self.frame
        slots = self.frames + self.context
        shape = (slots, height + 2 * BORDER, width + 2 * BORDER, channels)
        return InputSpec(f"decode_state.{self.index}", self.dtype, shape, "state")

    @property
    def placeholder(self) -> str:
        """Its name in a graph."""
        return f"ring_{self.index}"


@dataclass
class Program:
    """What the passes rewrite. Before `split-stages` there is one graph, named "chunk"."""

    graphs: dict[str, GraphModule]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    level: Level = Level.CAPTURED
    kv_states: tuple[KvState, ...] = ()
    sink_chunks: int = 0
    loop_states: tuple[LoopState, ...] = ()
    weights: dict[str, WeightRecord] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    kv_pool: KvPool | None = None
    stage_inputs: dict[str, tuple[InputSpec, ...]] = field(default_factory=dict)
    stage_outputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rings: dict[str, Ring] = field(default_factory=dict)

    @property
    def graph(self) -> GraphModule:
        """The one graph of a program that is not cut into stages yet."""
        return self.graphs["chunk"]

    def input(self, name: str) -> InputSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def returned(self) -> dict[str, Node]:
        """The nodes that the one graph returns, by the names of the outputs."""
        values: Any = output_node(self.graph.graph).args[0]
        return dict(zip(self.outputs, values, strict=True))

    def copy(self) -> Program:
        """An independent program: rewriting it leaves this one as it is."""
        twin = copy.copy(self)
        twin.graphs = {name: copy.deepcopy(graph) for name, graph in self.graphs.items()}
        twin.weights, twin.constants = dict(self.weights), dict(self.constants)
        twin.stage_inputs = dict(self.stage_inputs)
        twin.stage_outputs = dict(self.stage_outputs)
        twin.rings = dict(self.rings)
        return twin

    def drop_unread_weights(self) -> None:
        """Forget records that no graph reads: the originals of quantized and stacked weights."""
        read = {name for gm in self.graphs.values() for name in weight_names(gm)}
        self.weights = {
            key: record for key, record in self.weights.items() if read & set(record.targets)
        }

    def text(self) -> str:
        """Every graph as readable text, one line per node."""
        parts = [f"// {name} at {self.level.name.lower()}\n{graphs.text(gm)}"
                 for name, gm in self.graphs.items()]  # fmt: skip
        return "\n".join(parts)

    def digest(self) -> str:
        """sha256 over the structure of every graph; equal for equal structure."""
        parts = (f"{name} {graphs.digest(gm)}\n" for name, gm in self.graphs.items())
        return sha256("".join(parts).encode()).hexdigest()

    def diff(self, other: Program) -> str:
        """Unified diff of the texts of two programs."""
        lines = difflib.unified_diff(
            self.text().splitlines(), other.text().splitlines(), lineterm="", n=1
        )
        return "\n".join(lines)

    def op_counts(self) -> Counter[str]:
        """How often each op is called, over all graphs."""
        return Counter(
            str(node.target)
            for gm in self.graphs.values()
            for node in gm.graph.nodes
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
        )


def val(node: Node) -> Any:
    """The meta tensor (or sequence of them) that stands for the value of a node."""
    return node.meta["val"]


def provenance(node: Node) -> dict[str, Any]:
    """What llvq knows about where a node came from: {"rule", "from", "impl"}, maybe empty."""
    return node.meta.get("custom", {}).get("llvq", {})


def output_node(graph: Graph) -> Node:
    """The node that returns; it is the last one."""
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def placeholders(graph: Graph) -> list[Node]:
    """The inputs of a graph, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def weight_names(graph: GraphModule) -> dict[str, Node]:
    """The weights a graph reads, by name."""
    return {str(node.target): node for node in graph.graph.nodes if node.op == "get_attr"}


def where(node: Node) -> str:
    """Node, module path and source line in one phrase, for error messages."""
    source = source_line(node)
    return "   ".join(part for part in (node.name, module_path(node), source) if part)
