"""What quantization did to the graphs: ops per stage, nodes per pass, fused and kept layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule

from llvq.graphs.ops import OPERATORS
from llvq.passes.manager import changes
from llvq.quality.layers import LINEAR, layer_kind
from llvq.quality.pair import Pair
from llvq.quality.side_by_side import Likeness, side_by_side

Counts = tuple[int, int]


@dataclass(frozen=True)
class PassRow:
    """One pass of the quantized compile, its books summed."""

    name: str
    level: str
    numerics: str
    nodes: Counts
    sites: int
    hits: int
    excluded: int
    misses: int
    ops: Mapping[str, Counts] = field(default_factory=dict)


@dataclass(frozen=True)
class Structure:
    """`nodes` and `ops` hold (BF16, quantized) counts by stage; equal counts are left out of `ops`.

    `fused` counts the groups of layers that became one GEMM, by kind; `excluded` names the glob of
    the recipe that kept each linear, None for a miss that the recipe tolerates; `blocks` shows,
    for every stage whose blocks were rewritten, what became of their calls.
    """

    nodes: dict[str, Counts]
    ops: dict[str, dict[str, Counts]]
    passes: list[PassRow]
    fused: dict[str, int]
    excluded: dict[str, str | None]
    blocks: dict[str, list[Likeness]] = field(default_factory=dict)

    @property
    def levels(self) -> dict[str, dict[str, Counts]]:
        """Ops whose number changed on the way to a level, by level, in the order of the ladder."""
        found: dict[str, dict[str, Counts]] = {}
        for row in self.passes:
            level = found.setdefault(row.level, {})
            for op, (before, after) in row.ops.items():
                level[op] = (level.get(op, (before, before))[0], after)
        return found

    @property
    def changed(self) -> dict[str, Counts]:
        """Ops whose number changed, over all stages."""
        totals: dict[str, Counts] = {}
        for counts in self.ops.values():
            for op, (before, after) in counts.items():
                b, a = totals.get(op, (0, 0))
                totals[op] = (b + before, a + after)
        return totals


def structure(pair: Pair) -> Structure:
    """Reads graphs and the manifest, no weight."""
    before = {name: stage.graph for name, stage in pair.baseline.stages.items()}
    nodes, ops = {}, {}
    for stage, after in pair.graphs.items():
        nodes[stage] = (len(before[stage].graph.nodes), len(after.graph.nodes))
        ops[stage] = changes(op_counts(before[stage]), op_counts(after))
    passes = [_pass_row(entry) for entry in pair.box.manifest["passes"]]
    beside = {stage: side_by_side(before[stage], after) for stage, after in pair.graphs.items()}
    blocks = {s: groups for s, groups in beside.items() if any(map(_is_rewritten, groups))}
    return Structure(nodes, ops, passes, _fused(pair), _excluded(pair), blocks)


def _is_rewritten(group: Likeness) -> bool:
    return any(row.changed for row in group.rows)


def op_counts(gm: GraphModule) -> Counter[str]:
    """How often each operator is called."""
    targets = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    names = {function: name for name, function in OPERATORS.items()}
    return Counter(names.get(target, str(target)) for target in targets)


def _pass_row(entry: Mapping[str, Any]) -> PassRow:
    books = entry["books"]
    return PassRow(
        entry["name"],
        entry["level"],
        entry["numerics"],
        tuple(entry["nodes"]),
        sites=sum(book["sites"] for book in books),
        hits=sum(book["hits"] for book in books),
        excluded=sum(sum(book["excluded"].values()) for book in books),
        misses=sum(len(book["misses"]) + sum(book["tolerated"].values()) for book in books),
        ops={op: tuple(counts) for op, counts in entry["ops"].items()},
    )


def _fused(pair: Pair) -> dict[str, int]:
    records = pair.box.manifest["weights"].items()
    stacked = [t for t, r in records if r["op"] == "quantize" and len(r["sources"]) > 1]
    return dict(Counter(map(layer_kind, stacked)))


def _excluded(pair: Pair) -> dict[str, str | None]:
    """Linears of the stages that the recipe speaks of, and that stayed as they were."""
    kept: dict[str, str | None] = {}
    for name in ("condition", "modulate", "denoise", "refresh", "decode"):
        graph = pair.graphs.get(name)
        for node in graph.graph.nodes if graph else ():
            if node.op != "call_function" or node.target is not LINEAR:
                continue
            layer = str(node.args[1].target).removesuffix(".weight")
            kept[layer] = pair.recipe.excluded_by(layer)
    return kept
