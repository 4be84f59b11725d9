from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.errors import MissError
from llvq.passes.canonicalize import canonicalize
from llvq.passes.raise_norm_modulate import raise_norm_modulate

E = 32


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), (E,), eps=1e-6)


class PerFrame(nn.Module):
    """LongLive: rounded after the norm, modulated in the dtype of x, a vector per frame."""

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        grouped = norm(x).type_as(x).unflatten(1, (scale.shape[1], -1))
        return (grouped * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)


class PerSequence(nn.Module):
    """diffusers: fp32 throughout, one vector [B, 1, E], or one per token [B, N, E]."""

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return (norm(x.float()) * (1.0 + scale.float()) + shift.float()).type_as(x)


class InDtype(nn.Module):
    """A norm that is called in the dtype of x, and so rounds by itself."""

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return shift + (1 + scale) * F.layer_norm(x, (E,), eps=1e-6)


class Near(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if self.kind == "modulated in fp32, rounded before":
            return (norm(x).type_as(x) * (1 + scale.float()) + shift.float()).type_as(x)
        if self.kind == "modulated in bf16, not rounded before":
            return (norm(x) * (1 + scale) + shift).type_as(x)
        if self.kind == "fp32 shift":
            return (norm(x).type_as(x) * (1 + scale) + shift.float()).type_as(x)
        if self.kind == "two plus":
            return norm(x).type_as(x) * (2 + scale) + shift
        if self.kind == "norm read twice":
            y = norm(x).type_as(x)
            return y * (1 + scale) + shift + y
        if self.kind == "a vector per sequence, without a batch":
            return norm(x).type_as(x) * (1 + scale[0, 0]) + shift[0, 0]
        return norm(x).type_as(x)


NEAR = {
    "modulated in fp32, rounded before": "the norm is torch.bfloat16: an unknown rounding",
    "modulated in bf16, not rounded before": "the norm is not rounded before it is scaled",
    "fp32 shift": "scale is torch.bfloat16 and shift torch.float32",
    "two plus": "expected 1, found 2",
    "norm read twice": "users and the rule needs them inside the match",
    "a vector per sequence, without a batch": "is not one vector per group of tokens",
    "not modulated": "no node that could end the pattern uses it",
}


def sample(groups: int, tokens: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((2, tokens, E), (2, groups, E), (2, groups, E))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def test_rewrites(export, apply, golden):
    program = export(PerFrame(), *sample(3, 12))
    (book,) = apply(program, canonicalize, raise_norm_modulate)
    assert (book.sites, book.hits) == (1, 1)
    golden("raise_norm_modulate", program)


@pytest.mark.parametrize("kind", NEAR)
def test_leaves_near_misses_alone(kind, export, apply):
    program = export(Near(kind), *sample(1, 12))
    with pytest.raises(MissError) as caught:
        apply(program, canonicalize, raise_norm_modulate)
    assert NEAR[kind] in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [12, 30])
@pytest.mark.parametrize(
    ("module", "groups"),
    [(PerFrame(), 3), (PerSequence(), 1), (PerSequence(), None), (InDtype(), 1)],
    ids=["per frame", "per sequence", "per token", "norm in dtype"],
)
def test_keeps_the_numbers(module, groups, tokens, dtype, export, apply, evaluate):
    inputs = sample(groups or tokens, tokens, dtype)
    program = export(module, *inputs)
    (book,) = apply(program, canonicalize, raise_norm_modulate)
    assert book.hits == 1
    assert torch.equal(evaluate(program, module, *inputs)[0], module(*inputs))


def test_an_affine_norm_is_no_site(export, apply):
    program = export(nn.LayerNorm(E), sample(1, 12, torch.float32)[0])
    (book,) = apply(program, canonicalize, raise_norm_modulate)
    assert book.sites == 0


def test_is_idempotent(export, apply):
    program = export(PerFrame(), *sample(3, 12))
    apply(program, canonicalize, raise_norm_modulate)
    (book,) = apply(program, raise_norm_modulate)
    assert (book.sites, book.hits) == (0, 0)
