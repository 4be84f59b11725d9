"""split-stages: cut one graph into stages by how often their inputs change.

A node runs at the fastest rate among its inputs. What depends on the prompt alone is `condition`,
on the timestep alone `modulate`; what only an emitted chunk needs is a stage per group of outputs
(`decode`, ...); all else is `denoise`. `refresh` is `denoise` with its outputs dropped, so that
only what the cache needs is left. No stage is named by a rule about a model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch.fx import Graph, GraphModule, Node

from llvq.passes.books import Book
from llvq.passes.builder import finish
from llvq.passes.rules import Context
from llvq.program import InputSpec, Program, placeholders, val
from llvq.runtime.contract import Rate

WRITES = (torch.ops.llvq.write_page.default, torch.ops.llvq.write_kept.default)

CONSTANT, DENOISE = "constant", "denoise"
STAGE_OF_RATE = {
    "prompt": "condition",
    "step": "modulate",
    "chunk": DENOISE,
    "call": DENOISE,
    "emit": "emit",
}


def split_stages(program: Program, ctx: Context) -> list[Book]:
    """Cut; the book counts the stages, none if there is nothing left to cut."""
    if program.stage_inputs:
        return [Book("stage")]
    whole = program.graph
    stage_of = _stages(program)
    outputs = program.returned()
    emitted = _emit_groups(outputs, stage_of)
    wanted: dict[str, dict[str, Node]] = {"condition": {}, "modulate": {}}
    wanted[DENOISE] = {n: v for n, v in outputs.items() if stage_of[v] != "emit"}
    for stage, group in {**emitted, DENOISE: wanted[DENOISE]}.items():
        wanted.setdefault(stage, group)
    program.graphs = {}
    for stage in reversed(list(wanted)):
        _cut(program, whole, stage, wanted, stage_of)
    program.graphs = {stage: program.graphs[stage] for stage in wanted if stage in program.graphs}
    if program.kv_pool is not None:
        _split_refresh(program)
    return [Book("stage", sites=len(program.graphs), hits=len(program.graphs))]


def _stages(program: Program) -> dict[Node, str]:
    """The stage of every node; `constant` for what depends on no input."""
    nodes = list(program.graph.graph.nodes)
    stage_of = {
        node: STAGE_OF_RATE[spec.rate]
        for node, spec in zip(placeholders(program.graph.graph), program.inputs, strict=True)
    }
    for node in nodes:
        if node not in stage_of:
            stage_of[node] = _join(stage_of[source] for source in node.all_input_nodes)
    return stage_of


def _join(stages: Iterable[str]) -> str:
    """The stage of a node from those of its inputs: two slow rates together change per call."""
    distinct = set(stages) - {CONSTANT}
    if "emit" in distinct:
        return "emit"
    if not distinct:
        return CONSTANT
    return distinct.pop() if len(distinct) == 1 else DENOISE


def _emit_groups(outputs: dict[str, Node], stage_of: dict[Node, str]) -> dict[str, dict[str, Node]]:
    """Outputs that only an emitted chunk needs, by the first part of their name."""
    groups: dict[str, dict[str, Node]] = {}
    for name, node in outputs.items():
        if stage_of[node] == "emit":
            groups.setdefault(name.split(".")[0], {})[name] = node
    return groups


def _cut(
    program: Program,
    whole: GraphModule,
    stage: str,
    wanted: dict[str, dict[str, Node]],
    stage_of: dict[Node, str],
) -> None:
    """Extract one stage, and ask the stages before it for what it reads of them."""
    roots = list(wanted[stage].values())
    writes = [n for n in whole.graph.nodes if n.target in WRITES] if stage == DENOISE else []
    if not roots and not writes:
        return
    own = "emit" if stage not in STAGE_OF_RATE.values() else stage
    inside, boundary = _closure([*roots, *writes], own, stage_of)
    for node in boundary:
        if node.op != "placeholder" and node not in wanted[stage_of[node]].values():
            wanted[stage_of[node]][f"{stage_of[node]}.{node.name}"] = node
    names = {
        node: name
        for source, group in wanted.items()
        for name, node in group.items()
        if stage_of[node] == source
    }
    program.graphs[stage] = _extract(whole, inside, boundary, roots)
    program.stage_inputs[stage] = _boundary_specs(program, whole, boundary, stage_of, names)
    program.stage_outputs[stage] = tuple(wanted[stage])


def _closure(
    roots: list[Node], stage: str, stage_of: dict[Node, str]
) -> tuple[set[Node], list[Node]]:
    """Nodes of the stage that the roots need, constants included, and what they read outside."""
    inside: set[Node] = set()
    boundary: dict[Node, None] = {}
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node in inside or node in boundary:
            continue
        if node.op != "placeholder" and stage_of[node] in (stage, CONSTANT):
            inside.add(node)
            pending.extend(node.all_input_nodes)
        else:
            boundary[node] = None
    return inside, list(boundary)


def _in_order(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    chosen = set(nodes)
    return [node for node in graph.nodes if node in chosen]


def _extract(
    whole: GraphModule, inside: set[Node], boundary: list[Node], roots: list[Node]
) -> GraphModule:
    graph = Graph()
    twin: dict[Node, Node] = {}
    for node in _in_order(whole.graph, boundary):
        twin[node] = graph.placeholder(node.name)
        twin[node].meta["val"] = val(node)
    for node in _in_order(whole.graph, inside):
        twin[node] = graph.node_copy(node, lambda source: twin[source])
    graph.output(tuple(twin[node] for node in roots))
    stage = GraphModule(whole, graph)
    finish(stage)
    return stage


def _boundary_specs(
    program: Program,
    whole: GraphModule,
    boundary: list[Node],
    stage_of: dict[Node, str],
    names: dict[Node, str],
) -> tuple[InputSpec, ...]:
    given = dict(zip(placeholders(whole.graph), program.inputs, strict=True))
    rates: dict[str, Rate] = {
        "condition": "prompt",
        "modulate": "step",
        DENOISE: "call",
        "emit": "emit",
    }
    specs = []
    for node in _in_order(whole.graph, boundary):
        if node in given:
            specs.append(given[node])
            continue
        value, rate = val(node), rates.get(stage_of[node], "call")
        specs.append(InputSpec(names[node], value.dtype, tuple(value.shape), rate))
    return tuple(specs)


def _split_refresh(program: Program) -> None:
    """`refresh` keeps the page writes and drops the outputs; `denoise` the other way round."""
    both = program.graphs.pop(DENOISE)
    specs = program.stage_inputs[DENOISE]
    program.graphs[DENOISE] = _without(both, writes=True)
    program.graphs["refresh"] = _without(both, writes=False)
    for stage in (DENOISE, "refresh"):
        program.stage_inputs[stage] = drop_unused(program.graphs[stage], specs)
    program.stage_outputs["refresh"] = ()


def _without(both: GraphModule, *, writes: bool) -> GraphModule:
    """A copy without its page writes, or without its outputs."""
    stage = copy.deepcopy(both)
    for node in list(stage.graph.nodes):
        if writes and node.target in WRITES:
            stage.graph.erase_node(node)
        elif not writes and node.op == "output":
            node.args = ((),)
    finish(stage)
    return stage


def drop_unused(stage: GraphModule, specs: tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
    """Take away the inputs that nothing reads; gives what is left of their contract."""
    kept = []
    for node, spec in zip(placeholders(stage.graph), specs, strict=True):
        if node.users:
            kept.append(spec)
        else:
            stage.graph.erase_node(node)
    stage.recompile()
    return tuple(kept)
