"""window-per-prompt: K and V of a prompt are brought to FP8 once, where they come from.

Attention in FP8 brings its K and V to FP8 with every call. Those that come out of `condition` stay
for a whole prompt, so `condition` gives them as attention reads them, in FP8 with their scales, in
place of what they were. What stages take and give changes; no number does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.books import Book
from llvq.passes.builder import Builder, finish, is_call, shape
from llvq.passes.rules import Context
from llvq.passes.split_stages import STAGE_OF_RATE, drop_unused
from llvq.program import InputSpec, Program, output_node, placeholders, val

llvq = torch.ops.llvq

CONDITION = STAGE_OF_RATE["prompt"]
ATTENTION = llvq.attention_quantize_fp8.default
WINDOW = llvq.window_fp8.default
OVER_WINDOW = llvq.window_attention_quantize_fp8.default
PARTS = ("k_window", "v_window", "window_scales")


def window_per_prompt(program: Program, ctx: Context) -> list[Book]:
    """Rewrite every stage that reads K and V of a prompt. The book counts attention in FP8."""
    book = Book("window-per-prompt")
    for stage in program.stage_inputs:
        gm, before = program.graphs[stage], book.hits
        for node in [node for node in gm.graph.nodes if is_call(node, ATTENTION)]:
            book.sites += 1
            if (reason := _kept(program, stage, node)) is not None:
                book.excluded[reason] += 1
            elif ctx.take(book.rule, node):
                _read_window(program, stage, node)
                book.hits += 1
            else:
                book.stopped += 1
        if book.hits > before:
            program.stage_inputs[stage] = drop_unused(gm, program.stage_inputs[stage])
    if book.hits:
        _give_what_is_taken(program)
    return [book]


def _kept(program: Program, stage: str, node: Node) -> str | None:
    """Why an attention brings its K and V to FP8 itself."""
    given = program.stage_outputs.get(CONDITION, ())
    names: dict[Any, str] = dict(_names(program, stage))
    if any(names.get(source) not in given for source in node.args[1:3]):
        return f"its keys and values are not results of {CONDITION}"
    return None if shape(node.args[1])[0] == 1 else "it is of more than one video"  # type: ignore[arg-type]


def _names(program: Program, stage: str) -> dict[Node, str]:
    """The inputs of a stage: node -> name in the contract."""
    nodes = placeholders(program.graphs[stage].graph)
    return dict(zip(nodes, (s.name for s in program.stage_inputs[stage]), strict=True))


def _read_window(program: Program, stage: str, node: Node) -> None:
    """Put attention over a window of `condition` in the place of one over its K and V."""
    names, given = _names(program, stage), arguments(node)
    specs = _window(program, names[given["k"]], names[given["v"]])
    parts = [_input(program, stage, spec) for spec in specs]
    builder = Builder(program, "window-per-prompt", node, (node,))
    keys = shape(given["k"])[1]
    scales = (given["scale"], given["q_scale"])
    node.replace_all_uses_with(builder.call(OVER_WINDOW, given["q"], *parts, keys, *scales))
    node.graph.erase_node(node)


def _window(program: Program, k: str, v: str) -> list[InputSpec]:
    """The parts of the window of two results of `condition`, which gives them from here on."""
    graph = program.graphs[CONDITION].graph
    output, names = output_node(graph), list(program.stage_outputs[CONDITION])
    results = list(output.args[0])  # type: ignore[arg-type]
    sources = [results[names.index(name)] for name in (k, v)]
    builder = Builder(program, "window-per-prompt", sources[0], tuple(sources)).at(output)
    window = builder.once(WINDOW, *sources)
    index = [node for node in graph.nodes if is_call(node, WINDOW)].index(window)
    specs = []
    for part, node in zip(PARTS, builder.parts(window, len(PARTS)), strict=True):
        name, value = f"{CONDITION}.{part}_{index}", val(node)
        specs.append(InputSpec(name, value.dtype, tuple(value.shape), "prompt"))
        if name not in names:
            names.append(name)
            results.append(node)
    output.args = (tuple(results),)
    program.stage_outputs[CONDITION] = tuple(names)
    return specs


def _input(program: Program, stage: str, spec: InputSpec) -> Node:
    """The input of a stage, added if it is not there."""
    for node, name in _names(program, stage).items():
        if name == spec.name:
            return node
    graph = program.graphs[stage].graph
    with graph.inserting_after(placeholders(graph)[-1]):
        node = graph.placeholder(spec.name.partition(".")[2])
    node.meta["val"] = torch.empty(spec.sizes, dtype=spec.dtype, device="meta")
    program.stage_inputs[stage] += (spec,)
    return node


def _give_what_is_taken(program: Program) -> None:
    """`condition` gives what some stage takes, and nothing else."""
    taken = {spec.name for specs in program.stage_inputs.values() for spec in specs}
    gm = program.graphs[CONDITION]
    output, names = output_node(gm.graph), program.stage_outputs[CONDITION]
    results = dict(zip(names, output.args[0], strict=True))  # type: ignore[arg-type]
    kept = {name: node for name, node in results.items() if name in taken}
    output.args = (tuple(kept.values()),)
    program.stage_outputs[CONDITION] = tuple(kept)
    finish(gm)
