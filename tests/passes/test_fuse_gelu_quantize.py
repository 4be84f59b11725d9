from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llvq.errors import MissError
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_gelu_quantize import fuse_gelu_quantize
from llvq.passes.insert_quantize import insert_quantize

E = 32
BEFORE = (canonicalize, insert_quantize)


class Mlp(nn.Module):
    def __init__(self, approximate: str = "tanh", *, leak: bool = False) -> None:
        super().__init__()
        self.up, self.gelu, self.down = nn.Linear(E, 64), nn.GELU(approximate), nn.Linear(64, E)
        self.leak = leak

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        inner = self.gelu(self.up(x))
        return (self.down(inner), inner) if self.leak else (self.down(inner),)


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, tokens, E, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def test_rewrites(export, apply, golden):
    program = export(Mlp(), sample(3))
    (book,) = apply(program, *BEFORE, fuse_gelu_quantize)
    assert (book.sites, book.hits) == (1, 1)
    golden("fuse_gelu_quantize", program)


def test_a_gelu_that_something_else_reads_is_a_miss(export, apply):
    program = export(Mlp(leak=True), sample(3))
    with pytest.raises(MissError) as caught:
        apply(program, *BEFORE, fuse_gelu_quantize)
    assert "gelu has 2 users" in str(caught.value) and "another is output" in str(caught.value)


class Gated(nn.Module):
    """A GELU times something that is no smoothing, though quantized next."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(E, 64), nn.Linear(E, 64), nn.Linear(64, E)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.down(nn.functional.gelu(self.up(x)) * self.gate(x)),)


def test_a_gelu_that_gates_is_no_site(export, apply):
    program = export(Gated(), sample(3))
    (book,) = apply(program, *BEFORE, fuse_gelu_quantize)
    assert book.sites == 0


def test_a_branch_keeps_it_apart(export, apply, facts_of, calibrate):
    module = Mlp()
    known = calibrate(module, facts_of(module, {"down": "static smooth branch"}))
    program = export(module, sample(3))
    (book,) = apply(program, *BEFORE, fuse_gelu_quantize, calibration=known)
    assert (book.sites, dict(book.excluded)) == (1, {"a low-rank branch reads it too": 1})


@pytest.mark.parametrize("kind", ["", "static", "smooth", "static smooth"])
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 20])
def test_keeps_the_numbers(
    tokens, dtype, approximate, kind, export, apply, evaluate, facts_of, calibrate
):
    module, x = Mlp(approximate).to(dtype), sample(tokens, dtype)
    facts = facts_of(module, {"down": kind})
    program = export(module, x)
    apply(program, *BEFORE, calibration=calibrate(module, facts))
    before = evaluate(program, module, x, facts=facts)
    (book,) = apply(program, fuse_gelu_quantize)
    assert (book.sites, book.hits) == (1, 1)
    assert torch.equal(evaluate(program, module, x, facts=facts)[0], before[0])


def test_is_idempotent(export, apply):
    program = export(Mlp(), sample(3))
    apply(program, *BEFORE, fuse_gelu_quantize)
    (book,) = apply(program, fuse_gelu_quantize)
    assert (book.sites, book.hits) == (0, 0)
