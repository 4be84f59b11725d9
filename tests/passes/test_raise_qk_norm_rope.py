from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.errors import MissError
from llvq.passes.canonicalize import canonicalize
from llvq.passes.raise_qk_norm_rope import raise_qk_norm_rope

E, HEADS = 32, 2
HALF = E // HEADS // 2


class Spelled(nn.Module):
    """LongLive: fp32 statistics, rounded before the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, E))

    def norm(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.weight

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        pair = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return pair.flatten(-2).type_as(x)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.rotate(self.norm(x).unflatten(-1, (HEADS, -1)), cos, sin)


class Diffusers(Spelled):
    """`aten.rms_norm`, and a rotation that writes even and odd channels into a buffer."""

    def norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (E,), self.weight, 1e-6)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos[None, :, None], sin[None, :, None]
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        out = torch.empty_like(x)
        out[..., 0::2] = even * cos - odd * sin
        out[..., 1::2] = even * sin + odd * cos
        return out.type_as(x)


class NormOnly(Spelled):
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.norm(x)


class Near(Spelled):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def norm(self, x: Tensor) -> Tensor:
        if self.kind == "statistics in bf16":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        if self.kind == "over tokens":
            y = x.float()
            y = y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6)
            return y.type_as(x) * self.weight
        if self.kind == "no eps":
            return F.rms_norm(x, (E,), self.weight)
        if self.kind == "no weight":
            return F.rms_norm(x, (E,), None, 1e-6)
        return super().norm(x)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.kind == "bf16 tables":
            return super().rotate(x, cos.bfloat16(), sin.bfloat16())
        if self.kind == "rotate half":
            first, second = x.float().unflatten(-1, (2, -1)).unbind(-2)
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
            pair = [first * cos - second * sin, first * sin + second * cos]
            return torch.stack(pair, dim=-1).flatten(-2).type_as(x)
        return super().rotate(x, cos, sin)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.kind == "a row per head":
            x = x.unflatten(-1, (HEADS, -1))
            even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
            cos, sin = cos[:HEADS], sin[:HEADS]
            pair = [even * cos - odd * sin, even * sin + odd * cos]
            return torch.stack(pair, dim=-1).flatten(-2).type_as(x)
        return super().forward(x, cos, sin)


NEAR = {
    "statistics in bf16": "the mean is taken in torch.bfloat16",
    "over tokens": "the norm runs over dims [1]",
    "no eps": "eps is not given",
    "no weight": "expected a tensor for 'weight', found None",
    "bf16 tables": "cos is torch.bfloat16, which rounds the angles",
    "rotate half": "the rule knows only neighbouring channels",
    "a row per head": f"cos has shape ({HEADS}, {HALF})",
}


def sample(tokens: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    angles = torch.randn(tokens, HALF, generator=generator)
    return torch.randn(1, tokens, E, generator=generator).to(dtype), angles.cos(), angles.sin()


@pytest.mark.parametrize("module", [Spelled, Diffusers])
def test_rewrites(module, export, apply, golden):
    program = export(module().bfloat16(), *sample(6))
    books = apply(program, canonicalize, raise_qk_norm_rope)
    assert [(book.rule, book.sites, book.hits) for book in books] == [
        ("rms-norm", 1, 1),
        ("rope", 1, 1),
        ("rms-norm-rope", 1, 1),
    ]
    golden(f"raise_qk_norm_rope_{module.__name__.lower()}", program)


@pytest.mark.parametrize("kind", NEAR)
def test_leaves_near_misses_alone(kind, export, apply):
    program = export(Near(kind).bfloat16(), *sample(6))
    with pytest.raises(MissError) as caught:
        apply(program, canonicalize, raise_qk_norm_rope)
    assert NEAR[kind] in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [6, 35])
@pytest.mark.parametrize("kind", [Spelled, Diffusers, NormOnly])
def test_keeps_the_numbers(kind, tokens, dtype, export, apply, evaluate):
    module, inputs = kind().to(dtype), sample(tokens, dtype)
    program = export(module, *inputs)
    apply(program, canonicalize, raise_qk_norm_rope)
    assert torch.equal(evaluate(program, module, *inputs)[0], module(*inputs))


def test_is_idempotent(export, apply):
    program = export(Spelled().bfloat16(), *sample(6))
    apply(program, canonicalize, raise_qk_norm_rope)
    assert sum(book.sites for book in apply(program, raise_qk_norm_rope)) == 0
