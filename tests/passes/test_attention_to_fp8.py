from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.dialect import attention_fp8, fp8_linear, paged_attention_fp8, quantize_fp8, widen
from llvq.errors import MissError
from llvq.formats import nvfp4
from llvq.formats.kv import KV_FORMATS
from llvq.passes.activations_to_fp8 import activations_to_fp8
from llvq.passes.attention_to_fp8 import attention_to_fp8
from llvq.passes.cache_attention import cache_attention
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.raise_attention import raise_attention
from llvq.program import KvState, Program
from llvq.recipe import KvRecipe, Recipe

HEADS, D, CHUNK = 2, 16, 4
BEFORE = (canonicalize, raise_attention, insert_quantize, fuse_linear, activations_to_fp8)


def attend(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)


class Cross(nn.Module):
    """Attention over given K and V, and a linear after it."""

    def __init__(self, scale: float | None = None, *, masked: bool = False) -> None:
        super().__init__()
        self.o, self.scale, self.masked = nn.Linear(HEADS * D, 32), scale, masked

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        mask = k.sum(-1).amax(-1)[:, None, None] > 0 if self.masked else None
        return (self.o(attend(q, k, v, scale=self.scale, attn_mask=mask).flatten(2)),)


class Plain(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (attend(q, k, v),)


class Paged(nn.Module):
    def forward(self, x: Tensor, hk: Tensor, hv: Tensor) -> tuple[Tensor, ...]:
        k, v = x.sin(), x.cos()
        return attend(x, torch.cat([hk, k], 1), torch.cat([hv, v], 1)), k, v


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((1, tokens, HEADS, D), (1, 2 * tokens, HEADS, D), (1, 2 * tokens, HEADS, D))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.fixture
def paged(export, apply):
    """A program whose one layer attends over pages of a format."""

    def make(kv: KvRecipe, tokens: int = CHUNK) -> Program:
        program = export(Paged(), *sample(tokens))
        program.kv_states = (KvState(0, "hk", "hv", "output.1", "output.2"),)
        program.sink_chunks = 1
        apply(program, canonicalize, raise_attention, cache_attention, recipe=Recipe(kv=kv))
        return program

    return make


def test_rewrites(export, apply, golden):
    program = export(Cross(0.5), *sample(3))
    paged_book, book = apply(program, *BEFORE, attention_to_fp8)
    assert (paged_book.sites, book.sites, book.hits) == (0, 1, 1)
    golden("attention_to_fp8", program)


@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_rewrites_attention_over_pages(kv_format, paged, apply, golden, count):
    program = paged(KvRecipe(format=kv_format))
    book, _ = apply(program, attention_to_fp8)
    assert (book.rule, book.sites, book.hits) == ("paged-attention-fp8", 1, 1)
    assert count(program, "llvq.write_page") == 1
    golden(f"attention_to_fp8_{kv_format}", program)


def test_kept_chunks_are_attended_in_the_dtype(paged, apply, count):
    program = paged(KvRecipe(format="fp8", keep=("sink",)))
    book, _ = apply(program, attention_to_fp8)
    assert dict(book.excluded) == {"kept chunks are attended in the dtype of the model": 1}
    assert count(program, "llvq.paged_attention_kept") == 1


@pytest.mark.parametrize(
    ("module", "reason"),
    [(Cross(masked=True), "it has a mask"), (Plain(), "nothing in its stage is quantized")],
    ids=["masked", "plain"],
)
def test_leaves_other_attention_alone(module, reason, export, apply, evaluate):
    inputs = sample(3)
    program = export(module, *inputs)
    apply(program, *BEFORE)
    before = evaluate(program, module, *inputs)
    _, book = apply(program, attention_to_fp8)
    assert dict(book.excluded) == {reason: 1} and book.hits == 0
    assert torch.equal(evaluate(program, module, *inputs)[0], before[0])


def test_an_argument_that_no_rule_knows_is_a_miss(paged, apply):
    program = paged(KvRecipe(format="fp8"))
    node = next(n for n in program.graph.graph.nodes if "paged_attention" in str(n.target))
    node.args = (*node.args[:7], node.args[0], *node.args[8:])
    with pytest.raises(MissError, match="paged-attention-fp8 left 1 of 1 sites"):
        apply(program, attention_to_fp8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 9])
def test_computes_what_its_parts_compute(tokens, dtype, export, apply, evaluate):
    module, inputs = Cross().to(dtype), sample(tokens, dtype)
    program = export(module, *inputs)
    apply(program, *BEFORE, attention_to_fp8)
    out = quantize_fp8.reference(attention_fp8.reference(*inputs).flatten(2))
    codes, scales, g = nvfp4.quantize(module.o.weight.detach(), block_rule="four_over_six")
    w = widen.reference(codes, scales, g.reshape(1), [32])
    wanted = fp8_linear.reference(*out, *w, module.o.bias.detach(), dtype)
    assert torch.equal(evaluate(program, module, *inputs)[0], wanted)


@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
@pytest.mark.parametrize("tokens", [3, 9])
def test_attention_over_pages_computes_what_its_op_does(tokens, kv_format, paged, apply, evaluate):
    program, inputs = paged(KvRecipe(format=kv_format), tokens), sample(tokens)
    apply(program, attention_to_fp8)
    x, hk, hv = inputs
    specs = KV_FORMATS[kv_format].specs(1, 3, tokens, HEADS, D, x.dtype)
    pages = [torch.zeros(shape, dtype=kind) for _, kind, shape in specs]
    for slot in range(2):
        for which, history in enumerate((hk, hv)):
            part = history[0, slot * tokens : (slot + 1) * tokens]
            KV_FORMATS[kv_format].write(pages, 0, which, torch.tensor(slot), part)
    given = {"x": x, "page_table": torch.tensor([0, 1]), "slot": torch.tensor(2)}
    given |= dict(zip(program.kv_pool.inputs, pages, strict=True))
    (found,) = evaluate(program, Paged(), *(given[spec.name] for spec in program.inputs))
    rest = (pages, given["page_table"], None, None, None, 0, kv_format)
    assert torch.equal(found, paged_attention_fp8.reference(x, x.sin(), x.cos(), *rest))


def test_is_idempotent(export, apply):
    program = export(Cross(), *sample(3))
    apply(program, *BEFORE, attention_to_fp8)
    before = program.text()
    books = apply(program, attention_to_fp8)
    assert [(b.sites, b.hits) for b in books] == [(0, 0), (0, 0)] and program.text() == before
