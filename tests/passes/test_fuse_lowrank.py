from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_gelu_quantize import fuse_gelu_quantize
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.fuse_lowrank import fuse_lowrank
from llvq.passes.insert_quantize import insert_quantize

E = 32
BEFORE = (canonicalize, insert_quantize, fuse_linear)


class Projections(nn.Module):
    """Three linears of one value, and one of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(E, n) for n in (48, 48, 16))
        self.o = nn.Linear(48, E, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k = self.q(x), self.k(x)
        return q, self.v(x), self.o(F.silu(q) * k)


class Layers(nn.Module):
    """Linears of two layers that read one text, as cross-attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"k": nn.Linear(E, 16)}) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer["k"](x) for layer in self.layers)


class Gelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(E, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.o(F.gelu(x, approximate="tanh")),)


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, tokens, E, generator=torch.Generator().manual_seed(tokens)).to(dtype)


@pytest.fixture
def prepared(export, apply, facts_of, calibrate):
    def make(module, x, kinds, passes=BEFORE, ranks=(4, 4, 4, 4)):
        tensors = {}
        for (layer, kind), rank in zip(kinds.items(), ranks, strict=False):
            tensors |= facts_of(module, {layer: kind}, rank=rank)
        program = export(module, x)
        apply(program, *passes, calibration=calibrate(module, tensors))
        return program, tensors

    return make


def branches(layers: str = "qkvo", kind: str = "static smooth branch") -> dict[str, str]:
    return dict.fromkeys(layers, kind)


def test_rewrites(prepared, apply, golden):
    program, _ = prepared(Projections(), sample(3), branches())
    (book,) = apply(program, fuse_lowrank)
    assert (book.sites, book.hits) == (4, 4)
    program.drop_unread_weights()
    assert program.weights["q_k_v.lora_down"].sources == tuple(f"{n}.lora_down" for n in "qkv")
    assert {"o.lora_up", "q_k_v.lora_up"} < set(program.weights)
    assert "q.lora_up" not in program.weights
    golden("fuse_lowrank", program)


ONE_LEFT = "a linear of the stack has no branch"
SHARED = "its input is quantized for other linears too"
LAYERS = {"layers.0.k": "branch", "layers.1.k": "branch"}
NEAR = {
    "part of a stack": (Projections(), branches("qv") | {"k": "static smooth"}, {}, {ONE_LEFT: 2}),
    "other ranks": (
        Projections(),
        branches("qkv"),
        {"ranks": (4, 8, 4)},
        {"the branches of the stack differ in rank": 3},
    ),
    "shared quantize": (Layers(), LAYERS, {}, {SHARED: 2}),
    "not NVFP4": (
        Projections(),
        branches("o"),
        {"passes": BEFORE[:2]},
        {"its linear is not in NVFP4": 1},
    ),
}


@pytest.mark.parametrize("near", NEAR)
def test_leaves_near_misses_alone(near, prepared, apply):
    module, kinds, options, reasons = NEAR[near]
    program, _ = prepared(module, sample(3), kinds, **options)
    before = program.text()
    (book,) = apply(program, fuse_lowrank)
    assert dict(book.excluded) == reasons and book.balanced
    assert program.text() == before


def test_a_kernel_that_quantizes_otherwise_keeps_the_branch_apart(prepared, apply, count):
    """A GELU with a branch behind it does not write NVFP4 itself: the branch reads it too."""
    program, _ = prepared(Gelu(), sample(3), branches("o"), BEFORE[:2])
    (book,) = apply(program, fuse_gelu_quantize)
    assert dict(book.excluded) == {"a low-rank branch reads it too": 1}
    apply(program, fuse_linear)
    (book,) = apply(program, fuse_lowrank)
    assert book.hits == 1 and count(program, "llvq.quantize_lowrank") == 1


def test_a_linear_without_a_branch_is_no_site(prepared, apply):
    program, _ = prepared(Projections(), sample(3), branches(kind="static smooth"))
    (book,) = apply(program, fuse_lowrank)
    assert book.sites == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("kind", ["branch", "static smooth branch"])
def test_keeps_the_numbers(kind, tokens, dtype, prepared, apply, evaluate):
    module, x = Projections().to(dtype), sample(tokens, dtype)
    program, facts = prepared(module, x, branches(kind=kind))
    before = evaluate(program, module, x, facts=facts)
    apply(program, fuse_lowrank)
    # One product down for all three: the sums are the same, their order is the BLAS library's.
    found = evaluate(program, module, x, facts=facts)
    for a, b in zip(found[:2], before[:2], strict=True):
        torch.testing.assert_close(a, b)
    # An ulp of q moves a code of what o reads now and then.
    assert (found[2] - before[2]).norm() < 0.05 * before[2].norm()


def test_is_idempotent(prepared, apply):
    program, _ = prepared(Projections(), sample(3), branches())
    apply(program, fuse_lowrank)
    before = program.text()
    (book,) = apply(program, fuse_lowrank)
    assert (book.sites, book.hits) == (0, 0) and program.text() == before
