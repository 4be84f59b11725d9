"""lower: write down, at every llvq op, which implementation the target runs it with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from torch.fx import GraphModule, Node

from llvq.backends.attention_choice import choose_attention
from llvq.backends.base import TRITON, Target
from llvq.backends.gemm_choice import choose_gemm
from llvq.errors import TargetError
from llvq.passes.books import Book
from llvq.program import provenance, where

# Ops whose implementation is chosen by shape.
GEMMS = ("nvfp4_linear", "nvfp4_linear_swizzled")


def lower(graphs: Mapping[str, GraphModule], target: Target) -> Book:
    """Choose implementations; TargetError where the target has none."""
    book = Book("implementation")
    for gm in graphs.values():
        for node in gm.graph.nodes:
            if is_llvq(node):
                book.sites += 1
                _choose(node, target)
                book.hits += 1
    return book


def implementations_of(graphs: Mapping[str, GraphModule]) -> dict[str, dict[str, int]]:
    """How often each llvq op runs with each implementation, over all graphs."""
    found: dict[str, Counter[str]] = {}
    for gm in graphs.values():
        for node in filter(is_llvq, gm.graph.nodes):
            found.setdefault(str(node.target), Counter())[provenance(node)["impl"]] += 1
    return {op: dict(sorted(counts.items())) for op, counts in sorted(found.items())}


def is_llvq(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "namespace", None) == "llvq"


def _choose(node: Node, target: Target) -> None:
    schema = node.target._schema  # type: ignore[union-attr]
    name = schema.name.removeprefix("llvq::")
    reason = target.supports(name)
    if reason is not None:
        raise TargetError(
            f"target {target.name} cannot run llvq.{name}",
            where=where(node),
            because=reason,
            fix="choose another target, or exclude the layer in the recipe",
        )
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    chosen = target.implementation(name, {**given, **node.kwargs}.get("kv_format"))
    if name in GEMMS:
        x, w = (given[key].meta["val"].shape for key in ("x_codes", "w_codes"))
        chosen = choose_gemm(target.chip, prod(x[:-1]), w[0], 2 * w[1], chosen)
    if name == "paged_attention_quantize_fp8" and chosen == TRITON:
        _, tokens, _, dim = given["q"].meta["val"].shape
        chosen = choose_attention(target.chip, tokens, dim, chosen)
    custom = node.meta.get("custom", {})  # which copies of a graph share
    node.meta["custom"] = {**custom, "llvq": {**custom.get("llvq", {}), "impl": chosen}}
