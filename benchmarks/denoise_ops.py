"""Where the time of a stage goes, op by op: every call timed in place, on its real values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from benchmarks.convolutions import convolution_of
from llvq import graphs
from llvq.bench.timing import Timer
from llvq.graphs.cost import ATTENTIONS, LINEARS, node_bytes, node_macs
from llvq.graphs.on_meta import run_on_meta
from llvq.graphs.ops import op_name
from llvq.runtime.bind import BoundOp, implementation_of, op_of
from llvq.runtime.executable import CompiledStage

# Cycles that the device waits first, so that the host runs ahead and no launch is waited for.
AHEAD = 200_000_000
FP8_OPS = (
    "fp8_linear",
    "attention_fp8",
    "attention_quantize_fp8",
    "paged_attention_fp8",
    "paged_attention_quantize_fp8",
    "window_attention_quantize_fp8",
    "conv3d_fp8",
)
# What each kind of call is held against.
ATTENTION, BF16, FP8, COPY = "bf16 attention", "bf16 GEMM", "fp8 GEMM", "copy"


@dataclass(frozen=True)
class Cost:
    """Of one call: FLOP, bytes, and the ceiling that it is held against."""

    flop: int
    nbytes: int
    ceiling: str


@dataclass(frozen=True)
class OpTime:
    """All calls of one op at one shape in one run of a stage; seconds are medians over runs."""

    op: str
    implementation: str
    shape: str
    calls: int
    seconds: float
    cost: Cost

    def rate(self) -> float:
        """TFLOP/s, or TB/s of a call that is no matrix product."""
        amount = self.cost.nbytes if self.cost.ceiling == COPY else self.cost.flop
        return amount / self.seconds / 1e12

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "op": self.op,
            "implementation": self.implementation,
            "shape": self.shape,
            "calls": self.calls,
            "seconds": self.seconds,
            "flop": self.cost.flop,
            "bytes": self.cost.nbytes,
            "ceiling": self.cost.ceiling,
            "rate": self.rate(),
        }


def costs(document: Any) -> dict[str, Cost]:
    """By the name of a node of a graph document."""
    gm = graphs.load(document, device="meta")
    values = run_on_meta(gm)
    return {n.name: _cost(n, values) for n in gm.graph.nodes if n.op == "call_function"}


def _cost(node: Node, values: Mapping[Node, Any]) -> Cost:
    flop, name = 2 * node_macs(node), op_name(node.target)
    in_fp8 = op_of(node) in FP8_OPS or (op_of(node) == "ring_conv" and _reads_fp8(node))
    ceiling = FP8 if in_fp8 else BF16
    if name in ATTENTIONS and not in_fp8:
        ceiling = ATTENTION
    return Cost(flop, node_bytes(node, values), ceiling if flop else COPY)


def _reads_fp8(node: Node) -> bool:
    return node.args[0].meta["val"].dtype == torch.float8_e4m3fn  # type: ignore[union-attr]


def time_ops(
    stage: CompiledStage, given: Mapping[str, Tensor], known: Mapping[str, Cost], *, runs: int
) -> list[OpTime]:
    """Every op and shape that takes time, the most first. `known` are `costs` of its document."""
    runner = _Timing(stage.graph, Timer(next(iter(given.values())).device))
    inputs = [given[spec.name].contiguous() for spec in stage.inputs]
    with torch.inference_mode():
        spent = [runner.seconds(inputs) for _ in range(runs + 1)][1:]
    groups: dict[tuple[str, str, str], list[Node]] = {}
    for node in spent[0]:
        if known[node.name].nbytes or known[node.name].flop:
            key = (_label(node), implementation_of(node), _shape(node, runner.shapes[node]))
            groups.setdefault(key, []).append(node)
    rows = [
        OpTime(
            *key,
            len(nodes),
            median(sum(run[node] for node in nodes) for run in spent),
            _sum([known[node.name] for node in nodes]),
        )
        for key, nodes in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.seconds)


def _sum(each: list[Cost]) -> Cost:
    return Cost(sum(c.flop for c in each), sum(c.nbytes for c in each), each[0].ceiling)


class _Timing(Interpreter):
    def __init__(self, gm: GraphModule, timer: Timer) -> None:
        super().__init__(gm)
        self.timer = timer
        self.marks: dict[Node, tuple[Any, Any]] = {}
        self.shapes: dict[Node, str] = {}

    def seconds(self, inputs: list[Tensor]) -> dict[Node, float]:
        """Of each call of one run."""
        if self.timer.device.type == "cuda":
            torch.cuda._sleep(AHEAD)
        self.run(*inputs)
        self.timer.synchronize()
        return {node: self.timer.between(*marks) for node, marks in self.marks.items()}

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        if n not in self.shapes:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self.shapes[n] = next(_sizes((args, kwargs)), "")
        begin = self.timer.mark()
        value = super().run_node(n)
        self.marks[n] = (begin, self.timer.mark())
        return value


def _label(node: Node) -> str:
    return op_of(node) or op_name(node.target).removesuffix(".default")


def _shape(node: Node, sizes: str) -> str:
    """Of a linear m x k x n, of attention queries x keys, of a convolution what it makes from how
    many channels in what window, else of the first tensor."""
    if (convolution := convolution_of(node)) is not None:
        return convolution.text
    bound = isinstance(node.target, BoundOp)
    name = f"llvq.{node.target.op}.default" if bound else str(node.target)  # type: ignore[union-attr]
    out = node.meta["val"]
    if name in LINEARS:
        k = node.args[0].meta["val"].shape[-1] * LINEARS[name]  # type: ignore[union-attr]
        return f"{out.numel() // out.shape[-1]}x{k}x{out.shape[-1]}"
    if name in ATTENTIONS:
        place = ATTENTIONS[name]
        chunks = 1 + (0 if place is None else node.args[place].meta["val"].shape[0])  # type: ignore[union-attr]
        queries = node.args[0].meta["val"].shape[1]  # type: ignore[union-attr]
        return f"{queries}x{node.args[1].meta['val'].shape[1] * chunks}"  # type: ignore[union-attr]
    return sizes


def _sizes(tree: Any) -> Iterator[str]:
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.numel() > 1:
            yield "x".join(str(size) for size in leaf.shape if size > 1)
