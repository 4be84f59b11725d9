from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.errors import MissError
from llvq.passes.activations_to_fp8 import activations_to_fp8
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_add_norm_fp8 import fuse_add_norm_fp8
from llvq.passes.fuse_gate_residual import fuse_gate_residual
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.fuse_norm_quantize import fuse_norm_quantize
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.raise_norm_modulate import raise_norm_modulate

E = 32
BEFORE = (
    canonicalize,
    raise_norm_modulate,
    insert_quantize,
    fuse_norm_quantize,
    fuse_gate_residual,
    fuse_linear,
    activations_to_fp8,
)


class Block(nn.Module):
    """The three residuals of a block: gated then affine, plain then modulated, gated then modulated
    as the next block begins."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(E, E) for _ in range(4))
        self.norm = nn.LayerNorm(E, eps=1e-6)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(0.5, 1.5, E))
            self.norm.bias.copy_(torch.linspace(-1, 1, E))

    def modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, (E,), eps=1e-6) * (1 + scale) + shift

    def forward(self, x: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        x = x + self.a(x) * gate
        x = x + self.b(self.norm(x))
        x = x + self.c(self.modulated(x, scale, shift)) * gate
        return self.d(self.modulated(x, scale, shift)), x


class Near(Block):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.over_both = nn.LayerNorm((6, E))

    def forward(self, x: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        x = x + self.a(x) * gate
        if self.kind == "read as it is":
            y = self.norm(x)
            return self.b(y), y.sin()
        if self.kind == "over tokens too":
            return (self.b(self.over_both(x)),)
        if self.kind == "its own modulation":
            return (self.b(self.modulated(x, x.mean(1, keepdim=True), shift)),)
        return self.b(self.modulated(x, scale, shift)), self.c(self.norm(x))


NEAR = {
    "read as it is": "its norm is read as it is, too",
    "over tokens too": "it norms over more than the last dim",
    "its own modulation": "what it is modulated with is computed after the sum is read",
    "two norms": "another norm of its sum is fused with it",
}


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, E, generator=generator)
    vectors = torch.randn(3, 2, 1, E, generator=generator)
    return tuple(t.to(dtype) for t in (x, *vectors))


def test_rewrites(export, apply, golden, count):
    program = export(Block(), *sample(6))
    (book,) = apply(program, *BEFORE, fuse_add_norm_fp8)
    assert (book.rule, book.sites, book.hits) == ("add-norm-quantize-fp8", 3, 3)
    for op in ("llvq.gate_residual", "llvq.norm_modulate_quantize_fp8", "aten.layer_norm"):
        assert count(program, op) == 0
    golden("fuse_add_norm_fp8", program)


@pytest.mark.parametrize("kind", NEAR)
def test_keeps_apart_what_it_must(kind, export, apply, evaluate):
    module, inputs = Near(kind), sample(6)
    program = export(module, *inputs)
    apply(program, *BEFORE)
    before = evaluate(program, module, *inputs)
    (book,) = apply(program, fuse_add_norm_fp8)
    assert dict(book.excluded) == {NEAR[kind]: 1}
    assert book.hits == book.sites - 1 == (kind == "two norms")
    for old, new in zip(before, evaluate(program, module, *inputs), strict=True):
        assert torch.equal(old, new)


def test_a_sum_of_multiples_is_a_miss(export, apply):
    program = export(Block(), *sample(6))
    apply(program, *BEFORE)
    adds = [n for n in program.graph.graph.nodes if n.target is torch.ops.aten.add.Tensor]
    adds[-1].kwargs = {"alpha": 2}
    with pytest.raises(MissError) as caught:
        apply(program, fuse_add_norm_fp8)
    assert "argument 'alpha' is 2, the rule knows only its default" in str(caught.value)


def test_a_sum_with_a_vector_is_no_site(export, apply):
    class Shifted(Block):
        def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
            return (self.b(self.norm(x + gate)),)

    program = export(Shifted(), *sample(6)[:2])
    (book,) = apply(program, *BEFORE, fuse_add_norm_fp8)
    assert book.sites == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [6, 15])
def test_keeps_the_numbers(tokens, dtype, export, apply, evaluate):
    module, inputs = Block().to(dtype), sample(tokens, dtype)
    program = export(module, *inputs)
    apply(program, *BEFORE)
    before = evaluate(program, module, *inputs)
    (book,) = apply(program, fuse_add_norm_fp8)
    assert book.hits == 3
    for old, new in zip(before, evaluate(program, module, *inputs), strict=True):
        assert torch.equal(old, new)


def test_is_idempotent(export, apply):
    program = export(Block(), *sample(6))
    apply(program, *BEFORE, fuse_add_norm_fp8)
    before = program.text()
    (book,) = apply(program, fuse_add_norm_fp8)
    assert (book.sites, book.hits) == (0, 0) and program.text() == before
