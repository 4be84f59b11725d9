from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.passes.canonicalize import canonicalize
from llvq.passes.fold_smoothing import fold_smoothing
from llvq.passes.fuse_norm_quantize import fuse_norm_quantize
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.raise_norm_modulate import raise_norm_modulate
from llvq.recipe import LinearRecipe, Recipe

E = 32
BEFORE = (canonicalize, raise_norm_modulate, insert_quantize)


class Modulated(nn.Module):
    """Two linears behind one modulated norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(E, E), nn.Linear(E, E)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        y = F.layer_norm(x, (E,), eps=1e-6) * (1 + scale) + shift
        return self.q(y), self.k(y)


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((1, tokens, E), (1, 1, E), (1, 1, E))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def test_rewrites(export, apply, golden):
    program = export(Modulated(), *sample(3))
    (book,) = apply(program, *BEFORE, fuse_norm_quantize)
    assert (book.sites, book.hits) == (1, 1)
    golden("fuse_norm_quantize", program)


def test_a_norm_that_an_excluded_linear_reads_too_stays_by_that_glob(export, apply, count):
    program = export(Modulated(), *sample(3))
    recipe = Recipe(linear=LinearRecipe(exclude=("k",)))
    (book,) = apply(program, *BEFORE, fuse_norm_quantize, recipe=recipe)
    assert (book.sites, book.hits, dict(book.excluded)) == (1, 0, {"k": 1})
    assert count(program, "llvq.norm_modulate") == 1


def test_a_norm_that_no_quantize_reads_is_no_site(export, apply):
    program = export(Modulated(), *sample(3))
    recipe = Recipe(linear=LinearRecipe(exclude=("*",)))
    (book,) = apply(program, *BEFORE, fuse_norm_quantize, recipe=recipe)
    assert book.sites == 0


APART = {
    "a low-rank branch reads it too": {"q": "static branch", "k": "static"},
    "it is quantized in more than one way": {"q": "static"},
}


@pytest.mark.parametrize("reason", APART)
def test_a_norm_that_is_read_in_two_ways_stays(reason, export, apply, facts_of, calibrate):
    module = Modulated()
    known = calibrate(module, facts_of(module, APART[reason]))
    program = export(module, *sample(3))
    (book,) = apply(program, *BEFORE, fuse_norm_quantize, calibration=known)
    assert (book.sites, book.hits, dict(book.excluded)) == (1, 0, {reason: 1})


def test_smoothing_is_folded_before(export, apply, facts_of, calibrate, count):
    module = Modulated()
    known = calibrate(module, facts_of(module, dict.fromkeys("qk", "static smooth")))
    program = export(module, *sample(3))
    (book,) = apply(program, *BEFORE, fold_smoothing, fuse_norm_quantize, calibration=known)
    assert book.hits == 1 and count(program, "llvq.norm_modulate_quantize") == 1


@pytest.mark.parametrize("kind", ["", "static"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 20])
def test_keeps_the_numbers(tokens, dtype, kind, export, apply, evaluate, facts_of, calibrate):
    module, inputs = Modulated().to(dtype), sample(tokens, dtype)
    facts = facts_of(module, dict.fromkeys("qk", kind))
    program = export(module, *inputs)
    apply(program, *BEFORE, calibration=calibrate(module, facts))
    before = evaluate(program, module, *inputs, facts=facts)
    (book,) = apply(program, fuse_norm_quantize)
    assert book.hits == 1
    after = evaluate(program, module, *inputs, facts=facts)
    for found, wanted in zip(after, before, strict=True):
        assert torch.equal(found, wanted)


def test_is_idempotent(export, apply):
    program = export(Modulated(), *sample(3))
    apply(program, *BEFORE, fuse_norm_quantize)
    (book,) = apply(program, fuse_norm_quantize)
    assert (book.sites, book.hits) == (0, 0)
