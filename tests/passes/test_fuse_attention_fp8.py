from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llvq.dialect import attention_quantize_fp8, fp8_linear, widen
from llvq.errors import MissError
from llvq.formats import nvfp4
from llvq.passes.activations_to_fp8 import activations_to_fp8
from llvq.passes.attention_to_fp8 import attention_to_fp8
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_attention_fp8 import fuse_attention_fp8
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.raise_attention import raise_attention
from tests.passes.test_attention_to_fp8 import HEADS, Cross, D, attend, sample

BEFORE = (
    canonicalize,
    raise_attention,
    insert_quantize,
    fuse_linear,
    activations_to_fp8,
    attention_to_fp8,
)


class ReadTwice(Cross):
    """Attention that a linear reads, and somebody else."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        out = attend(q, k, v).flatten(2)
        return self.o(out), out


class ByHead(nn.Module):
    """A linear over every head for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(D, 32)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (self.o(attend(q, k, v)),)


def test_rewrites(export, apply, golden, count):
    program = export(Cross(0.5), *sample(3))
    book = apply(program, *BEFORE, fuse_attention_fp8)[-1]
    assert (book.sites, book.hits) == (1, 1)
    assert count(program, "llvq.quantize_fp8") == count(program, "llvq.attention_fp8") == 0
    golden("fuse_attention_fp8", program)


def test_leaves_attention_that_is_read_as_it_is(export, apply, count):
    program = export(ReadTwice(), *sample(3))
    book = apply(program, *BEFORE, fuse_attention_fp8)[-1]
    assert dict(book.excluded) == {"it is read as it is, too": 1} and book.hits == 0
    assert count(program, "llvq.attention_fp8") == 1


def test_rows_that_are_no_tokens_are_a_miss(export, apply):
    program = export(ByHead(), *sample(3))
    with pytest.raises(MissError, match="fuse-attention-fp8"):
        apply(program, *BEFORE, fuse_attention_fp8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 9])
def test_computes_what_its_parts_compute(tokens, dtype, export, apply, evaluate):
    module, inputs = Cross().to(dtype), sample(tokens, dtype)
    program = export(module, *inputs)
    apply(program, *BEFORE, fuse_attention_fp8)
    out = attention_quantize_fp8.reference(*inputs)
    assert out[0].shape == (1, tokens, HEADS * D)
    codes, scales, g = nvfp4.quantize(module.o.weight.detach(), block_rule="four_over_six")
    w = widen.reference(codes, scales, g.reshape(1), [32])
    wanted = fp8_linear.reference(*out, *w, module.o.bias.detach(), dtype)
    assert torch.equal(evaluate(program, module, *inputs)[0], wanted)


def test_is_idempotent(export, apply):
    program = export(Cross(), *sample(3))
    apply(program, *BEFORE, fuse_attention_fp8)
    before = program.text()
    (book,) = apply(program, fuse_attention_fp8)
    assert (book.sites, book.hits) == (0, 0) and program.text() == before
