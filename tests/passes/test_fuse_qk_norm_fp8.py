from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from llvq.dialect import (
    attention_quantize_fp8,
    fp8_norm_scale,
    paged_attention_quantize_fp8,
    rms_norm,
    rms_norm_rope,
)
from llvq.errors import MissError
from llvq.formats import fp8
from llvq.formats.kv import KV_FORMATS
from llvq.passes.fuse_qk_norm_fp8 import fuse_qk_norm_fp8

HEADS, D, WIDTH, TOKENS = 2, 16, 32, 4
ops = torch.ops.llvq


class Queries(nn.Module):
    """Queries that are normed, over keys that are given."""

    def __init__(self, *, width: int = WIDTH, twice: bool = False) -> None:
        super().__init__()
        self.weight, self.width, self.twice = nn.Parameter(torch.randn(width)), width, twice

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        rows = x if self.width == WIDTH else x.reshape(1, -1, HEADS, D)
        q = ops.rms_norm(rows, self.weight, 1e-6, True).reshape(1, -1, HEADS, D)
        out = ops.attention_quantize_fp8(q, k, v, 0.3)
        return (*out, q) if self.twice else out


class Paged(nn.Module):
    """Queries and keys of a chunk over pages, rotated before their pages or by their place."""

    def __init__(self, *, relative: bool = False, kv_format: str = "fp8") -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
        self.relative, self.kv_format = relative, kv_format

    def forward(
        self, x: Tensor, y: Tensor, v: Tensor, cos: Tensor, sin: Tensor, table: Tensor,
        *pages: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if self.relative:
            q, k = (
                ops.rms_norm(rows, weight, 1e-6, False).reshape(1, -1, HEADS, D)
                for rows, weight in ((x, self.q), (y, self.k))
            )
            places = (cos, sin)
        else:
            own = cos[-TOKENS:], sin[-TOKENS:]
            q, k = (
                ops.rms_norm_rope(rows, weight, *own, HEADS, 1e-6, False)
                for rows, weight in ((x, self.q), (y, self.k))
            )
            places = (None, None)
        args = (list(pages), table, *places, None, 0, self.kv_format)
        return (*ops.paged_attention_quantize_fp8(q, k, v, *args), k * 2)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def cross(tokens: int = TOKENS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    k, v = (randn(1, 9, HEADS, D, seed=seed) for seed in (1, 2))
    return tuple(t.to(dtype) for t in (randn(1, tokens, WIDTH), k, v))


def over_pages(kv_format: str = "fp8") -> tuple[Tensor, ...]:
    specs = KV_FORMATS[kv_format].specs(1, 2, TOKENS, HEADS, D, torch.float32)
    pages = [torch.zeros(shape, dtype=kind) for _, kind, shape in specs]
    for slot in range(2):
        for which in range(2):
            chunk = randn(TOKENS, HEADS, D, seed=7 * slot + which)
            KV_FORMATS[kv_format].write(pages, 0, which, torch.tensor(slot), chunk)
    angles = randn(3 * TOKENS, D // 2)
    x, y = (randn(1, TOKENS, WIDTH, seed=seed) for seed in (3, 4))
    v = randn(1, TOKENS, HEADS, D, seed=5)
    return x, y, v, angles.cos(), angles.sin(), torch.tensor([1, 0]), *pages


def decoded(values: Tensor, scale: Tensor) -> Tensor:
    return values.float() * scale


def same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a.float(), b.float()) for a, b in pairs)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 9])
def test_queries_of_a_norm(tokens, dtype, export, apply, golden, count, evaluate):
    module, inputs = Queries().to(dtype), cross(tokens, dtype)
    program = export(module, *inputs)
    queries, keys = apply(program, fuse_qk_norm_fp8)
    assert (queries.sites, queries.hits, keys.sites) == (1, 1, 0)
    assert count(program, "llvq.rms_norm") == 0 and count(program, "llvq.rms_norm_rope_fp8") == 1
    x, *kv = inputs
    scale = fp8_norm_scale.reference(module.weight.detach(), WIDTH**0.5)
    q = fp8.encode(rms_norm.reference(x, module.weight.detach(), 1e-6, True), scale)
    wanted = attention_quantize_fp8.reference(q.unflatten(2, (HEADS, D)), *kv, 0.3, scale)
    assert same(evaluate(program, module, *inputs), wanted)
    if dtype == torch.bfloat16 and tokens == 3:
        golden("fuse_qk_norm_fp8", program)


@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_queries_and_keys_over_pages(kv_format, export, apply, golden, count, evaluate):
    module, inputs = Paged(kv_format=kv_format), over_pages(kv_format)
    program = export(module, *inputs)
    queries, keys = apply(program, fuse_qk_norm_fp8)
    assert (queries.sites, queries.hits, keys.sites, keys.hits) == (1, 1, 1, 1)
    assert count(program, "llvq.rms_norm_rope") == 1 and count(program, "llvq.fp8_norm_scale") == 2
    x, y, v, cos, sin, table, *pages = inputs
    angles = cos[-TOKENS:], sin[-TOKENS:]
    q, k = (
        rms_norm_rope.reference(rows, weight.detach(), *angles, HEADS, 1e-6, False)
        for rows, weight in ((x, module.q), (y, module.k))
    )
    scales = [fp8_norm_scale.reference(w.detach(), 8.0) for w in (module.q, module.k)]
    args = (k, v, pages, table, None, None, None, 0, kv_format, *scales)
    wanted = paged_attention_quantize_fp8.reference(fp8.encode(q, scales[0]), *args)
    assert same(evaluate(program, module, *inputs), (*wanted, k * 2))
    golden(f"fuse_qk_norm_fp8_{kv_format}", program)


def test_queries_that_attention_rotates_stay_and_keys_are_bounded_turned(
    export, apply, count, evaluate
):
    module, inputs = Paged(relative=True), over_pages()
    program = export(module, *inputs)
    before = evaluate(program, module, *inputs)
    queries, keys = apply(program, fuse_qk_norm_fp8)
    reason = "its queries are rotated by their place in the window"
    assert dict(queries.excluded) == {reason: 1} and (keys.sites, keys.hits) == (1, 1)
    assert count(program, "llvq.rms_norm_rope_fp8") == 0
    scale = next(n for n in program.graph.graph.nodes if "fp8_norm_scale" in str(n.target))
    assert scale.args[1] == (2 * WIDTH) ** 0.5
    assert off(*(decoded(*r[:2]) for r in (evaluate(program, module, *inputs), before))) < 0.1


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Queries(twice=True), "its queries are read as they are, too"),
        (Queries(width=D), "its heads are normed one by one"),
    ],
    ids=["twice", "by head"],
)
def test_other_queries_stay(module, reason, export, apply, evaluate):
    inputs = cross()
    program = export(module, *inputs)
    before = evaluate(program, module, *inputs)
    queries, _ = apply(program, fuse_qk_norm_fp8)
    assert dict(queries.excluded) == {reason: 1} and queries.hits == 0
    assert same(evaluate(program, module, *inputs), before)


def test_an_argument_that_no_rule_knows_is_a_miss(export, apply):
    program = export(Queries(), *cross())
    node = next(n for n in program.graph.graph.nodes if "attention" in str(n.target))
    node.args = (*node.args[:3], node.args[0])
    with pytest.raises(MissError, match="queries-in-fp8 left 1 of 1 sites"):
        apply(program, fuse_qk_norm_fp8)


def test_no_value_leaves_its_scale(export, apply, evaluate):
    """One channel has all of a row: it is the largest that a norm can give."""
    module, (_, k, v) = Queries(), cross()
    x = torch.eye(WIDTH)[None] * 5.0
    program = export(module, x, k, v)
    apply(program, fuse_qk_norm_fp8)
    q = torch.rms_norm(x, (WIDTH,), module.weight.detach(), 1e-6).reshape(1, -1, HEADS, D)
    wanted = attention_quantize_fp8.reference(q, k, v, 0.3)
    assert off(decoded(*evaluate(program, module, x, k, v)), decoded(*wanted)) < 0.05


def test_is_idempotent(export, apply):
    program = export(Paged(), *over_pages())
    apply(program, fuse_qk_norm_fp8)
    before = program.text()
    books = apply(program, fuse_qk_norm_fp8)
    assert [(b.sites, b.hits) for b in books] == [(0, 0), (0, 0)] and program.text() == before
