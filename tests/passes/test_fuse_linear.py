from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llvq.calibration import LayerFacts
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_linear import fuse_linear, stacked_name
from llvq.passes.insert_quantize import insert_quantize
from llvq.recipe import LinearRecipe, Recipe

E = 32
BEFORE = (canonicalize, insert_quantize)


class Projections(nn.Module):
    """q, k and v of one value; the bias of v is computed."""

    def __init__(self, *, bias: bool = True, own_v: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(E, n, bias=bias) for n in (48, 16, 16))
        self.own_v = own_v

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k = self.q(x), self.k(x)
        if self.own_v:
            return q, k, nn.functional.linear(x, self.v.weight, self.v.bias * 2)
        return q, k, self.v(x)


class Layers(nn.Module):
    """Linears of two layers that read one text, as cross-attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"k": nn.Linear(E, 16)}) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer["k"](x) for layer in self.layers)


class Twice(nn.Module):
    """One pair of projections, called on two values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Projections()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*self.inner(x), *self.inner(x.sin()))


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, tokens, E, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def test_rewrites(export, apply, golden):
    program = export(Projections(), sample(3))
    (book,) = apply(program, *BEFORE, fuse_linear)
    assert (book.sites, book.hits) == (3, 3)
    program.drop_unread_weights()
    assert program.weights["q_k_v"].sources == ("q.weight", "k.weight", "v.weight")
    assert set(program.weights) == {"q_k_v", "q_k_v.bias"}
    golden("fuse_linear", program)


def test_a_stack_keeps_what_is_known_of_each(export, apply, facts_of, calibrate):
    module = Projections()
    known = calibrate(module, facts_of(module, {"q": "branch", "v": "branch"}))
    program = export(module, sample(3))
    apply(program, *BEFORE, fuse_linear, calibration=known)
    record = program.weights["q_k_v"]
    assert record.facts == (known["q"], LayerFacts(), known["v"])
    assert record.dtype == torch.float32


def test_layers_are_not_stacked_with_each_other(export, apply, count):
    program = export(Layers(), sample(3))
    (book,) = apply(program, *BEFORE, fuse_linear)
    assert book.hits == 2 and count(program, "llvq.nvfp4_linear") == 2


def test_a_computed_bias_keeps_a_linear_out_of_the_stack(export, apply, count):
    program = export(Projections(own_v=True), sample(3))
    apply(program, *BEFORE, fuse_linear)
    assert count(program, "llvq.nvfp4_linear") == 2


def test_an_excluded_linear_is_no_site(export, apply, count):
    program = export(Projections(), sample(3))
    recipe = Recipe(linear=LinearRecipe(exclude=("k",)))
    (book,) = apply(program, *BEFORE, fuse_linear, recipe=recipe)
    assert book.sites == 2 and count(program, "aten.linear") == 1
    assert program.weights["q_v"].sources == ("q.weight", "v.weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize(
    "module",
    [Projections(), Projections(bias=False), Projections(own_v=True), Layers(), Twice()],
    ids=["bias", "no bias", "computed bias", "layers", "twice"],
)
def test_keeps_the_numbers(module, tokens, dtype, export, apply, evaluate):
    module, x = module.to(dtype), sample(tokens, dtype)
    program = export(module, x)
    apply(program, *BEFORE)
    before = evaluate(program, module, x)
    apply(program, fuse_linear)
    # One product of another width: the sums are the same, their order is the BLAS library's.
    for found, wanted in zip(evaluate(program, module, x), before, strict=True):
        torch.testing.assert_close(found, wanted)


def test_is_idempotent(export, apply):
    program = export(Projections(), sample(3))
    apply(program, *BEFORE, fuse_linear)
    (book,) = apply(program, fuse_linear)
    assert (book.sites, book.hits) == (0, 0)


def test_a_stack_is_named_after_its_parts():
    assert stacked_name(["a.b.q", "a.b.k"]) == "a.b.q_k"
    assert stacked_name(["q", "k"]) == "q_k"
