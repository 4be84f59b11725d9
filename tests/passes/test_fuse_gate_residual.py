from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llvq.errors import MissError
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_gate_residual import fuse_gate_residual
from llvq.passes.insert_quantize import insert_quantize

E = 32


class PerFrame(nn.Module):
    """LongLive: a gate per frame, in the dtype of x."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(E, E)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = self.o(x).unflatten(1, (gate.shape[1], -1)) * gate.unsqueeze(2)
        return x + y.flatten(1, 2)


class InFp32(PerFrame):
    """diffusers: an fp32 gate per sequence, or per token, and one rounding at the end."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return (x.float() + self.o(x) * gate.float()).type_as(x)


class BothInFp32(PerFrame):
    """diffusers after its feed-forward: y is widened too."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return (x.float() + self.o(x).float() * gate.float()).type_as(x)


class Near(PerFrame):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = self.o(x)
        if self.kind == "rounded in between":
            return (x.float() + (y.float() * gate).type_as(x)).type_as(x)
        if self.kind == "widened y, bf16 gate":
            return (x + y.float() * gate).type_as(x)
        if self.kind == "sum stays wide":
            return x + y * gate.float()
        if self.kind == "a gate for the batch":
            return x + y * gate[:1]
        product = y * gate
        return x + product + product.sin()


NEAR = {
    "rounded in between": "no node that could end the pattern uses it",
    "widened y, bf16 gate": "gate, product and sum are torch.bfloat16, torch.float32",
    "sum stays wide": "the sum is rounded to torch.float32, x is torch.bfloat16",
    "a gate for the batch": "is not one vector per group of tokens",
    "product read twice": "has 2 users and the rule needs them inside the match",
}


class Scaled(PerFrame):
    """A product with a vector that belongs to the layer, and one that no sum follows."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x + self.o(self.o(x) * gate) * self.o.bias


def sample(groups: int, tokens: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((2, tokens, E), (2, groups, E))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def test_rewrites(export, apply, golden):
    program = export(PerFrame().bfloat16(), *sample(3, 12))
    (book,) = apply(program, canonicalize, fuse_gate_residual)
    assert (book.sites, book.hits) == (1, 1)
    golden("fuse_gate_residual", program)


@pytest.mark.parametrize("kind", NEAR)
def test_leaves_near_misses_alone(kind, export, apply):
    program = export(Near(kind).bfloat16(), *sample(1, 12))
    with pytest.raises(MissError) as caught:
        apply(program, canonicalize, fuse_gate_residual)
    assert NEAR[kind] in str(caught.value)


def test_other_products_are_no_sites(export, apply):
    program = export(Scaled().bfloat16(), *sample(1, 12))
    (book,) = apply(program, canonicalize, fuse_gate_residual)
    assert book.sites == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [12, 30])
@pytest.mark.parametrize(
    ("kind", "groups"),
    [(PerFrame, 3), (InFp32, 1), (InFp32, None), (BothInFp32, 1)],
    ids=["per frame", "per sequence", "per token", "both in fp32"],
)
def test_keeps_the_numbers(kind, groups, tokens, dtype, export, apply, evaluate):
    module, inputs = kind().to(dtype), sample(groups or tokens, tokens, dtype)
    program = export(module, *inputs)
    (book,) = apply(program, canonicalize, fuse_gate_residual)
    assert book.hits == 1
    assert torch.equal(evaluate(program, module, *inputs)[0], module(*inputs))


def test_a_gate_behind_a_low_rank_branch(export, apply, facts_of, calibrate):
    module = PerFrame()
    known = calibrate(module, facts_of(module, {"o": "branch"}))
    program = export(module, torch.randn(1, 6, E), torch.randn(1, 3, E))
    (book,) = apply(program, canonicalize, insert_quantize, fuse_gate_residual, calibration=known)
    assert (book.sites, book.hits) == (1, 1)


def test_is_idempotent(export, apply):
    program = export(PerFrame().bfloat16(), *sample(3, 12))
    apply(program, canonicalize, fuse_gate_residual)
    (book,) = apply(program, fuse_gate_residual)
    assert (book.sites, book.hits) == (0, 0)
