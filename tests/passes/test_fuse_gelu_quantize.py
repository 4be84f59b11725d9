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


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 20])
def test_keeps_the_numbers(tokens, dtype, approximate, export, apply, evaluate):
    module, x = Mlp(approximate).to(dtype), sample(tokens, dtype)
    program = export(module, x)
    apply(program, *BEFORE)
    before = evaluate(program, module, x)
    apply(program, fuse_gelu_quantize)
    assert torch.equal(evaluate(program, module, x)[0], before[0])


def test_is_idempotent(export, apply):
    program = export(Mlp(), sample(3))
    apply(program, *BEFORE, fuse_gelu_quantize)
    (book,) = apply(program, fuse_gelu_quantize)
    assert (book.sites, book.hits) == (0, 0)
