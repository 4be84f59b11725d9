from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.errors import CaptureError, MissError, RecipeError
from llvq.formats.kv import KV_FORMATS
from llvq.models.rope import apply_rope
from llvq.passes.cache_attention import cache_attention
from llvq.passes.canonicalize import canonicalize
from llvq.passes.raise_attention import raise_attention
from llvq.passes.raise_qk_norm_rope import raise_qk_norm_rope
from llvq.program import KvState, Program
from llvq.recipe import KvRecipe, Recipe

HEADS, D, CHUNK = 2, 16, 4
BEFORE = (canonicalize, raise_attention, raise_qk_norm_rope)
RAW = Recipe(kv=KvRecipe(format="none"))
KEEPING = Recipe(kv=KvRecipe(format="fp8", keep=("sink", "newest")))


class Absolute(nn.Module):
    """K is kept as attention reads it."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, hk: Tensor, hv: Tensor) -> tuple:
        k, v = x.sin(), x.cos()
        return self.attend(x, torch.cat([hk, k], 1), torch.cat([hv, v], 1)), k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class Relative(Absolute):
    """Raw K is kept; the window is rotated by its places, q by the last ones."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, hk: Tensor, hv: Tensor) -> tuple:
        k, v = x.sin(), x.cos()
        window = apply_rope(torch.cat([hk, k], 1), cos, sin)
        q = apply_rope(x, cos[-CHUNK:], sin[-CHUNK:])
        return self.attend(q, window, torch.cat([hv, v], 1)), k, v


class Normed(Absolute):
    """As `Relative`, with qk-norm: norm and rotation of q are one op before they meet pages."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, HEADS * D))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, hk: Tensor, hv: Tensor) -> tuple:
        k, v, y = x.sin(), x.cos(), x.flatten(2)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        q = apply_rope(y.unflatten(-1, (HEADS, D)), cos[-CHUNK:], sin[-CHUNK:])
        window = apply_rope(torch.cat([hk, k], 1), cos, sin)
        return self.attend(q, window, torch.cat([hv, v], 1)), k, v


class Near(Absolute):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, hk: Tensor, hv: Tensor) -> tuple:
        k, v = x.sin(), x.cos()
        if self.kind == "newest first":
            return self.attend(x, torch.cat([k, hk], 1), torch.cat([v, hv], 1)), k, v
        if self.kind == "keeps another k":
            return self.attend(x, torch.cat([hk, k], 1), torch.cat([hv, v], 1)), k * 2, v
        if self.kind == "first places":
            window = apply_rope(torch.cat([hk, k], 1), cos, sin)
            q = apply_rope(x, cos[:CHUNK], sin[:CHUNK])
            return self.attend(q, window, torch.cat([hv, v], 1)), k, v
        return x + hk[:, :CHUNK] + hv[:, :CHUNK], k, v


NEAR = {
    "newest first": "it reads sin_1 as history_k, the capture declared hk",
    "keeps another k": "it reads sin_1 as k, the capture declared mul",
    "first places": "q is rotated by cos[0:4], not by the last 4 of 12 places",
    "no attention": "no attention reads this history",
}


def sample(chunks: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(chunks)
    angles = torch.randn((chunks + 1) * CHUNK, D // 2, generator=generator)
    x = torch.randn(1, CHUNK, HEADS, D, generator=generator)
    hk, hv = torch.randn(2, 1, chunks * CHUNK, HEADS, D, generator=generator)
    return x, angles.cos(), angles.sin(), hk.clone(), hv.clone()


@pytest.fixture
def captured(export, apply):
    def make(module: nn.Module, chunks: int = 2) -> Program:
        program = export(module, *sample(chunks))
        program.kv_states = (KvState(0, "hk", "hv", "output.1", "output.2"),)
        apply(program, *BEFORE)
        return program

    return make


@pytest.mark.parametrize("module", [Absolute, Relative])
def test_rewrites(module, captured, apply, golden):
    program = captured(module())
    (book,) = apply(program, cache_attention)
    assert (book.sites, book.hits) == (1, 1)
    assert program.outputs == ("output.0",) and not program.kv_states
    assert program.kv_pool.slots == 3 and program.kv_pool.tokens == CHUNK
    golden(f"cache_attention_{module.__name__.lower()}", program)


@pytest.mark.parametrize("module", [Absolute, Relative])
def test_keeps_chunks_beside_the_pages(module, captured, apply, golden):
    program = captured(module())
    program.sink_chunks = 1
    (book,) = apply(program, cache_attention, recipe=KEEPING)
    assert (book.sites, book.hits) == (1, 1)
    assert program.kv_pool.slots == 3 and program.kv_pool.kept_slots == 3
    assert program.input("kept_slot").shape == ()
    golden(f"cache_attention_keeping_{module.__name__.lower()}", program)


@pytest.mark.parametrize(("keep", "slots"), [(("sink",), 1), (("newest",), 2)])
def test_the_kept_pool_is_as_large_as_what_is_kept(keep, slots, captured, apply):
    program = captured(Absolute())
    program.sink_chunks = 1
    recipe = Recipe(kv=KvRecipe(format="nvfp4", keep=keep))
    apply(program, cache_attention, recipe=recipe)
    assert program.input("pages.kept").shape == (1, 2, slots, CHUNK, HEADS, D)


def test_a_sink_is_not_kept_where_there_is_none(captured, apply):
    with pytest.raises(RecipeError, match="names the sink, and this model has none"):
        apply(captured(Absolute()), cache_attention, recipe=KEEPING)


@pytest.mark.parametrize("kind", NEAR)
def test_leaves_near_misses_alone(kind, captured, apply):
    program = captured(Near(kind))
    with pytest.raises(MissError) as caught:
        apply(program, cache_attention)
    assert NEAR[kind] in str(caught.value)


def test_a_history_of_broken_chunks_is_refused(export, apply):
    x, cos, sin, hk, hv = sample(2)
    program = export(Absolute(), x, cos, sin, hk[:, 1:], hv[:, 1:])
    program.kv_states = (KvState(0, "hk", "hv", "output.1", "output.2"),)
    with pytest.raises(CaptureError, match="not a whole number of chunks of 4"):
        apply(program, *BEFORE, cache_attention)


@pytest.mark.parametrize("module", [Absolute(), Relative(), Normed()])
@pytest.mark.parametrize("chunks", [2, 5])
def test_keeps_the_numbers(chunks, module, captured, apply, evaluate):
    """Pages in the dtype of the model: the history written to pages gives what it gave before."""
    program, inputs = captured(module, chunks), sample(chunks)
    before = evaluate(program, module, *inputs)
    apply(program, cache_attention, recipe=RAW)
    x, cos, sin, hk, hv = inputs
    kv = KV_FORMATS["none"]
    sizes = (1, chunks + 1, CHUNK, HEADS, D, x.dtype)
    pages = [torch.zeros(shape, dtype=dtype) for _, dtype, shape in kv.specs(*sizes)]
    order = torch.randperm(chunks + 1, generator=torch.Generator().manual_seed(0))
    for i in range(chunks):
        for which, history in enumerate((hk, hv)):
            kv.write(pages, 0, which, order[i], history[0, i * CHUNK : (i + 1) * CHUNK])
    given = {"x": x, "cos": cos, "sin": sin, "page_table": order[:-1], "slot": order[-1]}
    given |= dict(zip(program.kv_pool.inputs, pages, strict=True))
    (out,) = evaluate(program, module, *(given[spec.name] for spec in program.inputs))
    assert torch.equal(out, before[0])
    for which, own in enumerate(before[1:]):
        assert torch.equal(kv.read(pages, 0, which, order[-1:], x.dtype), own[0])


@pytest.mark.parametrize("module", [Absolute(), Relative(), Normed()])
@pytest.mark.parametrize("chunks", [2, 5])
def test_what_is_kept_keeps_the_numbers(chunks, module, captured, apply, evaluate):
    """All history is read from the kept pool, so pages of poison change nothing."""
    program, inputs = captured(module, chunks), sample(chunks)
    before = evaluate(program, module, *inputs)
    program.sink_chunks = chunks - 1
    apply(program, cache_attention, recipe=KEEPING)
    x, cos, sin, hk, hv = inputs
    given = {"x": x, "cos": cos, "sin": sin, "slot": torch.tensor(0), "kept_slot": torch.tensor(-1)}
    given["page_table"] = torch.arange(chunks) + chunks + 1
    for spec in program.inputs:
        if spec.name.startswith("pages."):
            given[spec.name] = torch.full(spec.sizes, torch.nan).to(spec.dtype)
    kept = given["pages.kept"]
    for which, history in enumerate((hk, hv)):
        kept[0, which, :chunks] = history.unflatten(1, (chunks, CHUNK))[0]
    expected = kept.clone()
    (out,) = evaluate(program, module, *(given[spec.name] for spec in program.inputs))
    assert torch.equal(out, before[0])
    assert torch.equal(kept[:, :, :chunks], expected[:, :, :chunks])
    given["kept_slot"] = torch.tensor(chunks)
    evaluate(program, module, *(given[spec.name] for spec in program.inputs))
    for which, own in enumerate(before[1:]):
        assert torch.equal(kept[0, which, chunks], own[0])


def test_is_idempotent(captured, apply):
    program = captured(Absolute())
    apply(program, cache_attention)
    (book,) = apply(program, cache_attention)
    assert (book.sites, book.hits) == (0, 0)
