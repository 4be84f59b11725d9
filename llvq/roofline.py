"""A roofline of a compiled model on a chip: an estimate from data sheets, never a measurement.

The time of a call is the longer of two: its FLOP over the rate of the dtype it computes in, and its
bytes over the bandwidth of the memory. Calls that are no matrix product count by bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from llvq import graphs
from llvq.backends.chips import PRODUCTS, Product
from llvq.compiler import Stage
from llvq.graphs.cost import node_bytes, node_macs
from llvq.graphs.on_meta import run_on_meta
from llvq.graphs.ops import op_name
from llvq.passes.lowering import lower_to_numerics
from llvq.recipe import Recipe
from llvq.runtime.executable import RunFacts
from llvq.runtime.fold import foldable

LABEL = "estimate, not a measurement"
ASSUMPTIONS = (
    "time of a call = max(FLOP / rate, bytes / bandwidth), at the vendor's dense peak",
    "nothing overlaps, nothing waits: no launch gaps, and every call reads and writes memory once",
    "the window is full; norms, quantization and softmax cost bytes alone",
    "condition (once per prompt) and modulate (once per timestep) are left out",
)
# Matrix products that do not compute in the dtype of the model, whatever the numerics.
COMPUTES_IN = {
    "llvq.conv3d_fp8.default": "fp8",
    "llvq.fp8_linear.default": "fp8",
    "llvq.attention_fp8.default": "fp8",
    "llvq.attention_quantize_fp8.default": "fp8",
    "llvq.paged_attention_fp8.default": "fp8",
    "llvq.paged_attention_quantize_fp8.default": "fp8",
    "llvq.window_attention_quantize_fp8.default": "fp8",
}
# It computes in FP8 over a ring that holds it.
RING_CONV = "llvq.ring_conv.default"
# What `nvfp4_linear` computes in: the tensor cores of `w4a4` take NVFP4.
NVFP4 = {"w4a4": "fp4"}
NVFP4_LINEARS = (
    "llvq.nvfp4_linear.default",
    "llvq.nvfp4_linear_gate_residual.default",
    "llvq.nvfp4_linear_gelu.default",
    "llvq.nvfp4_linear_gelu_quantize.default",
    "llvq.nvfp4_linear_lowrank.default",
    "llvq.nvfp4_linear_swizzled.default",
)
# Attention whose scores are in FP4; its weights and V are multiplied in bf16.
SCORES_IN_FP4 = ("llvq.paged_attention_fp4",)
PLAIN = "bf16"
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
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class _Call:
    op: str
    computes_in: str | None
    flop: int
    nbytes: int


def roofline(
    stages: Mapping[str, Stage],
    facts: RunFacts,
    recipe: Recipe,
    target: str,
    numerics: str,
    *,
    lowered: bool = False,
) -> Roofline | None:
    """Of a denoise call and a chunk, lowered to the numerics, unless they are already.

    None for a target that no datasheet describes, such as a CPU, and for a model that computes in a
    dtype without a rate. Raises TargetError: the numerics cannot run the model.
    """
    products = PRODUCTS.get(target, ())
    if not products or facts.dtype not in RATED:
        return None
    runs = _runs_per_chunk(stages, facts)
    gms = {n: graphs.load(graphs.dump(stages[n].graph), device="meta") for n in runs}
    if not lowered:
        lower_to_numerics(gms, numerics, recipe)
    calls = {name: list(_calls(gm, numerics)) for name, gm in gms.items()}
    estimates = tuple(_estimate(product, calls, runs, facts) for product in products)
    return Roofline(LABEL, ASSUMPTIONS, estimates)


def _runs_per_chunk(stages: Mapping[str, Stage], facts: RunFacts) -> dict[str, int]:
    decodes = facts.frames_per_chunk // facts.latents_per_decode
    runs = {"denoise": facts.steps, "refresh": 1, "decode": decodes}
    return {name: count for name, count in runs.items() if name in stages}


def _calls(gm: GraphModule, numerics: str) -> Iterator[_Call]:
    """Every call that takes time; what a loader computes from weights takes none."""
    values, folded = run_on_meta(gm), foldable(gm)
    for node in gm.graph.nodes:
        if node.op == "call_function" and node not in folded:
            call = _call(node, values, numerics)
            if call.flop or call.nbytes:
                yield from _products(call)


def _products(call: _Call) -> Iterator[_Call]:
    """A call, or each of its products where they compute in two dtypes; half of the FLOP each."""
    if call.op in SCORES_IN_FP4:
        half = replace(call, flop=call.flop // 2)
        yield replace(half, computes_in="fp4", nbytes=0)
        yield half
    else:
        yield call


def _call(node: Node, values: Mapping[Node, Any], numerics: str) -> _Call:
    name, flop = op_name(node.target), 2 * node_macs(node)
    dtype = _computes_in(name, numerics) if flop else None
    if name == RING_CONV and values[node.args[0]].dtype == torch.float8_e4m3fn:  # type: ignore[index]
        dtype = "fp8"
    return _Call(name.removesuffix(".default"), dtype, flop, node_bytes(node, values))


def _computes_in(name: str, numerics: str) -> str:
    if name in NVFP4_LINEARS:
        return NVFP4.get(numerics, PLAIN)
    return COMPUTES_IN.get(name, PLAIN)


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
