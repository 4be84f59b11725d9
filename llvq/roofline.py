"""A roofline of a compiled model on a chip: an estimate from data sheets, never a measurement.

The time of a call is the longer of two: its FLOP over the rate of the dtype it computes in, and its
bytes over the bandwidth of the memory. Calls that are no matrix product count by bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from llvq.backends.chips import PRODUCTS, Product
from llvq.compiler import Stage
from llvq.graphs.cost import (
    ATTENTIONS,
    CONVOLUTIONS,
    LINEARS,
    PLAIN,
    node_bytes,
    node_macs,
)
from llvq.graphs.on_meta import run_on_meta
from llvq.graphs.ops import op_name
from llvq.runtime.executable import RunFacts

LABEL = "estimate, not a measurement"
ASSUMPTIONS = (
    "time of a call = max(FLOP / rate, bytes / bandwidth), at the vendor's dense peak",
    "nothing overlaps, nothing waits: no launch gaps, and every call reads and writes memory once",
    "the window is full; norms, quantization and softmax cost bytes alone",
    "condition (once per prompt) and modulate (once per timestep) are left out",
)
QUANTIZED, PRODUCT, ATTENTION = "quantized linears", "other linears, convolutions", "attention"
# Numerics -> the dtype that each kind of matrix product computes in.
COMPUTES_IN = {
    "w4a4": {QUANTIZED: "fp4", PRODUCT: "bf16", ATTENTION: "bf16"},
    "w4a8": {QUANTIZED: "fp8", PRODUCT: "bf16", ATTENTION: "bf16"},
    "w4a16": {QUANTIZED: "bf16", PRODUCT: "bf16", ATTENTION: "bf16"},
    "w4a4-emulated": {QUANTIZED: "bf16", PRODUCT: "bf16", ATTENTION: "bf16"},
}
# Numerics -> how many times the bytes of the stored form move, for the parts of NVFP4 values: a
# code is half a byte. What is not named moves as it is stored.
MOVES: Mapping[str, Mapping[str, int]] = {
    "w4a4": {},
    "w4a4-emulated": {},
    "w4a8": {"x codes": 2, "x scales": 0, "w codes": 2, "w scales": 0},
    "w4a16": {"x codes": 4, "x scales": 0},
}
RATED = ("bfloat16", "float16")


@dataclass(frozen=True)
class OpEstimate:
    """All calls of one op in one run of a stage. `bound` is what most of its time goes to."""

    op: str
    computes_in: str | None
    calls: int
    flop: int
    nbytes: int
    seconds: float
    bound: str


@dataclass(frozen=True)
class Estimate:
    """One product: `ops` of one denoise call; seconds of one call of each stage, and of a chunk."""

    product: Product
    ops: tuple[OpEstimate, ...]
    stages: Mapping[str, float]
    chunk: float
    fps: float


@dataclass(frozen=True)
class Roofline:
    """`label` and `assumptions` belong to every number in `estimates`, one per product."""

    label: str
    assumptions: tuple[str, ...]
    computes_in: Mapping[str, str]
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class _Call:
    op: str
    computes_in: str | None
    flop: int
    nbytes: int


def roofline(
    stages: Mapping[str, Stage], facts: RunFacts, target: str, numerics: str
) -> Roofline | None:
    """Of a denoise call and a chunk; None for a target that no datasheet describes, such as a CPU,
    and for a model that computes in a dtype without a rate."""
    products = PRODUCTS.get(target, ())
    if not products or facts.dtype not in RATED:
        return None
    runs = _runs_per_chunk(stages, facts)
    calls = {name: list(_calls(stages[name], numerics)) for name in runs}
    estimates = tuple(_estimate(product, calls, runs, facts) for product in products)
    return Roofline(LABEL, ASSUMPTIONS, COMPUTES_IN[numerics], estimates)


def _runs_per_chunk(stages: Mapping[str, Stage], facts: RunFacts) -> dict[str, int]:
    decodes = facts.frames_per_chunk // facts.latents_per_decode
    runs = {"denoise": facts.steps, "refresh": 1, "decode": decodes}
    return {name: count for name, count in runs.items() if name in stages}


def _calls(stage: Stage, numerics: str) -> Iterator[_Call]:
    """Every call of a stage that takes time."""
    values = run_on_meta(stage.graph)
    for node in stage.graph.graph.nodes:
        if node.op == "call_function":
            call = _call(node, values, numerics)
            if call.flop or call.nbytes:
                yield call


def _call(node: Node, values: Mapping[Node, Any], numerics: str) -> _Call:
    moves, name = MOVES[numerics], op_name(node.target)
    moved = node_bytes(node, values)
    nbytes = sum(count * moves.get(role, 1) for role, count in moved.items() if role != PLAIN)
    kind = _kind(name)
    computes_in = COMPUTES_IN[numerics][kind] if kind else None
    flop = 2 * node_macs(node) if kind else 0
    return _Call(name.removesuffix(".default"), computes_in, flop, nbytes + moved[PLAIN])


def _kind(name: str) -> str | None:
    if name in LINEARS[1:]:
        return QUANTIZED
    if name in LINEARS or name in CONVOLUTIONS:
        return PRODUCT
    return ATTENTION if name in ATTENTIONS else None


def _estimate(
    product: Product,
    calls: Mapping[str, list[_Call]],
    runs: Mapping[str, int],
    facts: RunFacts,
) -> Estimate:
    stages = {name: sum(max(_times(product, c)) for c in each) for name, each in calls.items()}
    chunk = sum(stages[name] * count for name, count in runs.items())
    frames = facts.frames_per_chunk * facts.temporal_stride
    return Estimate(
        product, tuple(_by_op(product, calls["denoise"])), stages, chunk, frames / chunk
    )


def _times(product: Product, call: _Call) -> tuple[float, float]:
    """Seconds by FLOP and by bytes."""
    rate = product.tflops[call.computes_in] * 1e12 if call.computes_in else 1.0
    return call.flop / rate, call.nbytes / (product.bandwidth * 1e12)


def _by_op(product: Product, calls: Iterable[_Call]) -> list[OpEstimate]:
    """The most time first."""
    groups: dict[tuple[str, str | None], list[_Call]] = {}
    for call in calls:
        groups.setdefault((call.op, call.computes_in), []).append(call)
    rows = [_row(product, group) for group in groups.values()]
    return sorted(rows, key=lambda row: (-row.seconds, row.op))


def _row(product: Product, group: list[_Call]) -> OpEstimate:
    spent = {"FLOP": 0.0, "bytes": 0.0}
    for call in group:
        by_flop, by_bytes = _times(product, call)
        spent["FLOP" if by_flop > by_bytes else "bytes"] += max(by_flop, by_bytes)
    return OpEstimate(
        group[0].op,
        group[0].computes_in,
        len(group),
        sum(call.flop for call in group),
        sum(call.nbytes for call in group),
        sum(spent.values()),
        max(spent, key=spent.__getitem__),
    )
