"""cache-attention: attention over a history given as tensors becomes attention over pages.

Before, history K and V are graph inputs and the chunk's own K and V graph outputs. After, there
is one page pool for all layers; a page table names the pages of the window, and one op per layer
writes the chunk's page. Pages are the only arguments the graph mutates. The length of the window
is then only the length of the page table, so one graph serves every window. Where the recipe keeps
chunks in the model's dtype, a second, smaller pool holds them, and entries of the same table name
its slots.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from llvq.errors import CaptureError, RecipeError
from llvq.formats.kv import KV_FORMATS
from llvq.formats.kv_slots import PageSpec
from llvq.matcher import match
from llvq.passes.books import Book, account_miss
from llvq.passes.builder import Builder, dtype, finish, is_call, shape
from llvq.passes.rules import Context
from llvq.pattern import Literal, Match, Miss, Var, call, either
from llvq.program import InputSpec, KvPool, KvState, Program, output_node, placeholders
from llvq.runtime.facts import KEPT
from llvq.runtime.pages import PageTable

aten = torch.ops.aten
llvq = torch.ops.llvq

COS, SIN = Var("cos"), Var("sin")
K = call(aten.cat.default, [Var("history_k"), Var("k")], 1)
V = call(aten.cat.default, [Var("history_v"), Var("v")], 1)
ABSOLUTE = call(llvq.attention.default, Var("q"), K, V, scale=Literal("scale"))
OWN_COS = call(aten.slice.Tensor, COS, 0, Literal("cos_start"), Literal("cos_end"), shared=True)
OWN_SIN = call(aten.slice.Tensor, SIN, 0, Literal("sin_start"), Literal("sin_end"), shared=True)
ROTATED_Q = either(
    call(llvq.rope.default, Var("q"), OWN_COS, OWN_SIN),
    call(
        llvq.rms_norm_rope.default,
        Var("x"),
        Var("weight"),
        OWN_COS,
        OWN_SIN,
        Literal("heads"),
        Literal("eps"),
        Literal("round_first"),
    ),
)
RELATIVE = call(
    llvq.attention.default,
    ROTATED_Q,
    call(llvq.rope.default, K, COS, SIN),
    V,
    scale=Literal("scale"),
)
CACHED = either(RELATIVE, ABSOLUTE)


def cache_attention(program: Program, ctx: Context) -> list[Book]:
    """Rewrite every layer that the capture declared a KV state for, or none at all."""
    book = Book("paged-attention", sites=len(program.kv_states))
    if not program.kv_states:
        return [book]
    matches = _match_layers(program, book)
    if book.misses:
        book.stopped = len(matches)
        return [book]
    pool = _pool(program, ctx)
    inputs = _add_inputs(program, pool)
    for state in program.kv_states:
        _rewrite_layer(program, pool, inputs, state, matches[state.layer])
        book.hits += 1
    _drop_present(program)
    _drop_history(program)
    program.kv_pool, program.kv_states = pool, ()
    finish(program.graph)
    return [book]


def _match_layers(program: Program, book: Book) -> dict[int, Match]:
    """The attention of each layer. A miss cannot be tolerated: all layers share one page pool."""
    found = {}
    for state in program.kv_states:
        tensors = _tensors(program, state)
        result = _attention_over(tensors)
        if isinstance(result, Match):
            found[state.layer] = result
        else:
            account_miss(book, result.node, result, {})
    return found


def _tensors(program: Program, state: KvState) -> dict[str, Node]:
    """The nodes that a state names: histories are inputs, the chunk's own K and V outputs."""
    inputs = _inputs(program)
    return {
        "history_k": inputs[state.history_k],
        "history_v": inputs[state.history_v],
        "k": program.returned()[state.present_k],
        "v": program.returned()[state.present_v],
    }


def _attention_over(tensors: dict[str, Node]) -> Match | Miss:
    """The match of the attention that reads these histories."""
    history = tensors["history_k"]
    miss = Miss("no attention reads this history", history)
    frontier = list(history.users)
    while frontier:
        node = frontier.pop(0)
        if is_call(node, llvq.attention.default):
            result = match(CACHED, node)
            if isinstance(result, Match):
                reason = _misuse(result, tensors)
                return result if reason is None else Miss(reason, node, result.nodes)
            miss = result
        elif is_call(node, aten.cat.default, llvq.rope.default):
            frontier.extend(node.users)
    return miss


def _misuse(found: Match, tensors: dict[str, Node]) -> str | None:
    """Why pages that hold these tensors would not give this attention the same K and V."""
    for name, declared in tensors.items():
        if found[name] is not declared:
            return f"it reads {found[name].name} as {name}, the capture declared {declared.name}"
    if found.get("cos") is None:
        return None
    window, own = shape(found["cos"])[0], shape(found.get("q") or found["x"])[1]
    for name in ("cos", "sin"):
        start, end = found[f"{name}_start"], found[f"{name}_end"]
        if range(window)[start:end] != range(window)[-own:]:
            return (
                f"q is rotated by {name}[{start}:{end}], not by the last {own} of {window} places"
            )
    return None


def _pool(program: Program, ctx: Context) -> KvPool:
    """The page pool that holds what the history inputs held, plus the chunk's own page."""
    first = program.kv_states[0]
    _, history, heads, head_dim = shape(_inputs(program)[first.history_k])
    own = program.returned()[first.present_k]
    tokens = shape(own)[1]
    if history % tokens:
        raise CaptureError(
            f"a history of {history} tokens is not a whole number of chunks of {tokens}",
            fix="capture with a window that is a multiple of the chunk",
        )
    kv = KV_FORMATS[ctx.recipe.kv.format]
    sizes = (len(program.kv_states), history // tokens + 1, tokens, heads, head_dim, dtype(own))
    names = tuple(f"pages.{name}" for name, _, _ in kv.specs(*sizes))
    kept = _kept_slots(program.sink_chunks, sizes[1], ctx.recipe.kv.keep)
    return KvPool(ctx.recipe.kv.format, *sizes, names, kept)


def _kept_slots(sink_chunks: int, window_chunks: int, keep: tuple[str, ...]) -> int:
    if "sink" in keep and not sink_chunks:
        raise RecipeError(
            "kv.keep names the sink, and this model has none",
            because="its sink_frames is 0: no chunk stays in the window for good",
            fix='leave "sink" out of kv.keep',
        )
    return PageTable(window_chunks=window_chunks, sink_chunks=sink_chunks, keep=keep).kept_slots


def page_tensors(pool: KvPool) -> list[PageSpec]:
    """Name, dtype and shape of every tensor that holds K and V between chunks."""
    sizes = (pool.layers, pool.slots, pool.tokens, pool.heads, pool.head_dim, pool.dtype)
    kv = KV_FORMATS[pool.kv_format]
    tensors = [(f"pages.{name}", kind, shape) for name, kind, shape in kv.specs(*sizes)]
    if pool.kept_slots:
        ((_, kind, shape),) = KV_FORMATS["none"].specs(pool.layers, pool.kept_slots, *sizes[2:])
        tensors.append((KEPT, kind, shape))
    return tensors


def _add_inputs(program: Program, pool: KvPool) -> dict[str, Node]:
    """Placeholders for the pages, the page table and the slot to write."""
    specs = [
        InputSpec(name, page_dtype, page_shape, "chunk")
        for name, page_dtype, page_shape in page_tensors(pool)
    ]
    specs.append(InputSpec("page_table", torch.int64, (None,), "chunk", tuple(range(pool.slots))))
    specs.append(InputSpec("slot", torch.int64, (), "chunk"))
    if pool.kept_slots:
        specs.append(InputSpec("kept_slot", torch.int64, (), "chunk"))
    graph = program.graph.graph
    last = placeholders(graph)[-1]
    nodes = {}
    for spec in specs:
        with graph.inserting_after(last):
            last = graph.placeholder(spec.name.replace(".", "_"))
        full = [pool.slots - 1 if size is None else size for size in spec.shape]
        last.meta["val"] = torch.empty(full, dtype=spec.dtype, device="meta")
        nodes[spec.name] = last
    program.inputs += tuple(specs)
    return nodes


def _rewrite_layer(
    program: Program, pool: KvPool, inputs: dict[str, Node], state: KvState, found: Match
) -> None:
    """Read the pages of the window, and write the chunk's own page.

    The write comes at once, not at the end: no layer's K and V wait for the last layer's.
    """
    builder = Builder(program, "paged-attention", found.root, found.nodes)
    pages, k, v = [inputs[name] for name in pool.inputs], found["k"], found["v"]
    builder.call(llvq.write_page.default, pages, k, v, inputs["slot"], state.layer, pool.kv_format)
    attend, kept = llvq.paged_attention.default, []
    if pool.kept_slots:
        attend, kept = llvq.paged_attention_kept.default, [inputs[KEPT]]
        builder.call(llvq.write_kept.default, *kept, k, v, inputs["kept_slot"], state.layer)
    out = builder.call(
        attend,
        found.get("q") or _norm_alone(found, builder),
        k,
        v,
        pages,
        inputs["page_table"],
        *kept,
        found.get("cos"),
        found.get("sin"),
        found["scale"],
        state.layer,
        pool.kv_format,
    )
    found.root.replace_all_uses_with(out)


def _norm_alone(found: Match, b: Builder) -> Node:
    """The query before its rotation, which the cached attention does itself."""
    x, weight, heads = found["x"], found["weight"], found["heads"]
    normed = b.call(llvq.rms_norm.default, x, weight, found["eps"], found["round_first"])
    return b.reshape(normed, (*shape(x)[:-1], heads, shape(x)[-1] // heads))


def _drop_present(program: Program) -> None:
    """The chunk's K and V are in its page: they are no outputs any more."""
    present = {name for s in program.kv_states for name in (s.present_k, s.present_v)}
    kept = {name: node for name, node in program.returned().items() if name not in present}
    program.outputs = tuple(kept)
    output_node(program.graph.graph).args = (tuple(kept.values()),)


def _drop_history(program: Program) -> None:
    histories = {name for s in program.kv_states for name in (s.history_k, s.history_v)}
    inputs = _inputs(program)
    finish(program.graph)
    for name in histories:
        program.graph.graph.erase_node(inputs[name])
    program.inputs = tuple(spec for spec in program.inputs if spec.name not in histories)


def _inputs(program: Program) -> dict[str, Node]:
    nodes = placeholders(program.graph.graph)
    return {spec.name: node for spec, node in zip(program.inputs, nodes, strict=True)}
