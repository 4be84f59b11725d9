from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.errors import MissError
from llvq.formats import nvfp4
from llvq.formats.kv import KV_FORMATS
from llvq.passes.cache_attention import cache_attention
from llvq.passes.canonicalize import canonicalize
from llvq.passes.raise_attention import raise_attention
from llvq.passes.scores_in_fp4 import scores_in_fp4
from llvq.program import KvState, Program
from llvq.recipe import KvRecipe, Recipe
from tests.passes.test_attention_to_fp8 import CHUNK, HEADS, D, Paged, sample
from tests.passes.test_cache_attention import BEFORE, Relative
from tests.passes.test_cache_attention import sample as sample_with_places

FP4 = Recipe(kv=KvRecipe(qk="nvfp4"))


@pytest.fixture
def paged(export, apply):
    """A program whose one layer attends over pages."""

    def make(tokens: int = CHUNK, recipe: Recipe = FP4) -> Program:
        program = export(Paged(), *sample(tokens))
        program.kv_states = (KvState(0, "hk", "hv", "output.1", "output.2"),)
        program.sink_chunks = 1
        apply(program, canonicalize, raise_attention, cache_attention, recipe=recipe)
        return program

    return make


def test_rewrites(paged, apply, golden, count):
    program = paged()
    (book,) = apply(program, scores_in_fp4, recipe=FP4)
    assert (book.rule, book.sites, book.hits) == ("paged-attention-fp4", 1, 1)
    assert count(program, "llvq.write_page") == 1
    golden("scores_in_fp4", program)


@pytest.mark.parametrize("kv", [KvRecipe(), KvRecipe("fp8"), KvRecipe(keep=("sink",))])
def test_another_recipe_has_no_sites(kv, paged, apply):
    program = paged(recipe=Recipe(kv=kv))
    before = program.text()
    assert apply(program, scores_in_fp4, recipe=Recipe(kv=kv)) == []
    assert program.text() == before


def test_raw_k_of_relative_positions_is_a_miss(export, apply):
    program = export(Relative(), *sample_with_places(2))
    program.kv_states = (KvState(0, "hk", "hv", "output.1", "output.2"),)
    apply(program, *BEFORE, cache_attention, recipe=FP4)
    with pytest.raises(MissError, match="paged-attention-fp4 left 1 of 1 sites") as caught:
        apply(program, scores_in_fp4, recipe=FP4)
    assert "pages hold K before its rotation" in str(caught.value)


@pytest.mark.parametrize(
    ("kv", "reason"),
    [
        (KvRecipe("fp8"), "pages in fp8 hold no NVFP4 codes"),
        (KvRecipe(keep=("sink",)), "no node that could end the pattern uses it"),
    ],
    ids=["fp8", "kept"],
)
def test_a_program_of_another_recipe_is_a_miss(kv, reason, paged, apply):
    program = paged(recipe=Recipe(kv=kv))
    with pytest.raises(MissError, match="paged-attention-fp4 left 1 of 1 sites") as caught:
        apply(program, scores_in_fp4, recipe=FP4)
    assert reason in str(caught.value)


def decoded(x: Tensor) -> Tensor:
    return nvfp4.dequantize(*nvfp4.quantize(x, block_rule="max"), torch.float32)


@pytest.mark.parametrize("tokens", [3, 9])
def test_it_attends_with_q_and_k_in_nvfp4(tokens, paged, apply, evaluate):
    """Over pages that the format wrote: torch's own attention on what they decode to."""
    program, (x, hk, hv) = paged(tokens), sample(tokens)
    apply(program, scores_in_fp4, recipe=FP4)
    kv = KV_FORMATS["nvfp4"]
    specs = kv.specs(1, 3, tokens, HEADS, D, x.dtype)
    pages = [torch.zeros(shape, dtype=kind) for _, kind, shape in specs]
    for slot in range(2):
        for which, history in enumerate((hk, hv)):
            part = history[0, slot * tokens : (slot + 1) * tokens]
            kv.write(pages, 0, which, torch.tensor(slot), part)
    given = {"x": x, "page_table": torch.tensor([0, 1]), "slot": torch.tensor(2)}
    given |= dict(zip(program.kv_pool.inputs, pages, strict=True))
    (found,) = evaluate(program, Paged(), *(given[spec.name] for spec in program.inputs))
    k, v = (kv.read(pages, 0, which, given["page_table"], x.dtype)[None] for which in (0, 1))
    window = (torch.cat([k, decoded(x.sin())], 1), torch.cat([v, x.cos()], 1))
    qkv = (t.transpose(1, 2) for t in (decoded(x), *window))
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*qkv).transpose(1, 2))


def test_is_idempotent(paged, apply):
    program = paged()
    apply(program, scores_in_fp4, recipe=FP4)
    before = program.text()
    (book,) = apply(program, scores_in_fp4, recipe=FP4)
    assert (book.sites, book.hits) == (0, 0) and program.text() == before
