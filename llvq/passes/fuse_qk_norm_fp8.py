"""fuse-qk-norm-fp8: queries leave their norm in FP8, and keys get a scale from theirs.

An RMS norm bounds what it gives by its weight: |q| <= sqrt(C) max|w| over C channels, and a
rotation of pairs makes that sqrt(2) as large at most. So the scale of a query is known before a
chunk is, and queries are written in FP8 where they are normed; and of the window's keys, whose
pages hold what the same norm gave, none is searched for the largest. E4M3 is floating, so that a
scale that is larger than it had to be costs no precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from llvq.matcher import arguments
from llvq.passes.books import Book
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.rules import Context, Rule, apply_rules
from llvq.pattern import Literal, Match, Var, call, either
from llvq.program import Program
from llvq.recipe import Recipe

aten = torch.ops.aten
llvq = torch.ops.llvq

PAGED = llvq.paged_attention_quantize_fp8.default
ATTENTIONS = (PAGED, llvq.attention_quantize_fp8.default)
TURNED, NORM, RESHAPE = llvq.rms_norm_rope.default, llvq.rms_norm.default, aten.reshape.default
ROUNDING = (Literal("eps"), Literal("round_first"))


def normed(*, shared: bool) -> Any:
    """A value [B, N, H, D] that comes from a norm; `shared` says that others may read it, too."""
    turned = call(
        TURNED,
        *(Var("x"), Var("weight"), Var("turn_cos"), Var("turn_sin"), Literal("heads"), *ROUNDING),
        bind="norm",
        shared=shared,
    )
    plain = call(NORM, Var("x"), Var("weight"), *ROUNDING, bind="norm", shared=shared)
    return either(turned, call(RESHAPE, plain, Literal("shape"), shared=shared), plain)


def paged(q: Any, k: Any, rotation: tuple[Any, Any], **scales: Any) -> Any:
    pages = (Literal("pages"), Var("table"), *rotation, Literal("scale"))
    return call(PAGED, q, k, Var("v"), *pages, Literal("layer"), Literal("kv_format"), **scales)


QUERIES = normed(shared=False)
QUERIES_ATTEND = either(
    paged(QUERIES, Var("k"), (None, None), k_scale=either(Var("k_scale"), None)),
    call(ATTENTIONS[1], QUERIES, Var("k"), Var("v"), scale=Literal("scale")),
)
KEYS_ATTENDED = paged(
    Var("q"),
    normed(shared=True),
    (either(Var("cos"), None), either(Var("sin"), None)),
    q_scale=either(Var("q_scale"), None),
)


def norm_of(value: Any) -> Node | None:
    """The norm that a value [B, N, H, D] comes from."""
    if is_call(value, RESHAPE):
        value = value.args[0]
        return value if is_call(value, NORM) else None
    return value if is_call(value, TURNED, NORM) else None


def has_normed_queries(node: Node) -> bool:
    """Attention in FP8 whose queries come from a norm, and in the dtype of the model."""
    if not is_call(node, *ATTENTIONS) or norm_of(node.args[0]) is None:
        return False
    return arguments(node)["q_scale"] is None


def has_normed_keys(node: Node) -> bool:
    """Attention in FP8 over pages whose keys come from a norm, and have no scale yet."""
    if not is_call(node, PAGED) or norm_of(node.args[1]) is None:
        return False
    return arguments(node)["k_scale"] is None


def kept_in_dtype(node: Node, _: Recipe) -> str | None:
    """Why queries are quantized by attention."""
    query, norm = node.args[0], norm_of(node.args[0])
    assert isinstance(query, Node) and norm is not None
    if arguments(node).get("cos") is not None:
        return "its queries are rotated by their place in the window"
    if len(query.users) > 1 or len(norm.users) > 1:
        return "its queries are read as they are, too"
    batch, tokens, heads, dim = shape(query)
    row = (batch, tokens, heads * dim)
    return None if shape(norm.args[0]) == row else "its heads are normed one by one"  # type: ignore[arg-type]


def build_queries(found: Match, b: Builder) -> Node:
    given, query = arguments(found.root), found.root.args[0]
    rotation = found.get("turn_cos"), found.get("turn_sin")
    scale = _scale(b, found, rotated=rotation[0] is not None)
    operands = (found["x"], found["weight"], *rotation, scale, shape(query)[2])  # type: ignore[arg-type]
    values = b.call(llvq.rms_norm_rope_fp8.default, *operands, found["eps"], found["round_first"])
    return _attend(b, found.root, {**given, "q": values, "q_scale": scale})


def build_keys(found: Match, b: Builder) -> Node:
    rotated = found.get("turn_cos") is not None or found.get("cos") is not None
    scale = _scale(b, found, rotated=rotated)
    return _attend(b, found.root, {**arguments(found.root), "k_scale": scale})


def _scale(b: Builder, found: Match, *, rotated: bool) -> Node:
    """The scale of what a norm gives, by its weight alone: a loader computes it once."""
    (channels,) = shape(found["weight"])
    factor = (2 * channels if rotated else channels) ** 0.5
    return b.call(llvq.fp8_norm_scale.default, found["weight"], factor)


def _attend(b: Builder, attention: Node, given: Mapping[str, Any]) -> Node:
    return b.call(attention.target, *given.values())


RULES = (
    Rule(
        name="queries-in-fp8",
        anchor=has_normed_queries,
        pattern=QUERIES_ATTEND,
        build=build_queries,
        excluded=kept_in_dtype,
    ),
    Rule(
        name="keys-bounded",
        anchor=has_normed_keys,
        pattern=KEYS_ATTENDED,
        build=build_keys,
    ),
)


def fuse_qk_norm_fp8(program: Program, ctx: Context) -> list[Book]:
    return apply_rules(program, ctx, "fuse-qk-norm-fp8", RULES)
