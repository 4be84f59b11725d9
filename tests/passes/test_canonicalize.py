from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llvq.errors import SpecError
from llvq.passes.canonicalize import canonicalize


class Spellings(nn.Module):
    """The same few ideas, each said in several ways."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, tokens, channels = x.shape
        heads = x.view(batch, tokens, 2, -1).flatten(2).unflatten(-1, (4, -1))
        flipped = heads.transpose(1, 2).contiguous().detach()
        wide = x.float().to(torch.float32).type_as(x)
        same = x[:, :].expand(batch, tokens, channels).squeeze(-1).clone().cos()
        again = nn.functional.dropout(x.sin() * x.sin(), training=False)
        return flipped, wide, same, again


class Transposes(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.t().sin(), x.swapaxes(0, 1).sin(), x.movedim(-1, 0).sin(), x.mT.sin(), x.T.sin()


class InterleavedWrites(nn.Module):
    """Rotary positions as diffusers writes them."""

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        out = torch.empty_like(x)
        out[..., 0::2] = even.float().cos()
        out[..., 1::2] = odd.float().sin()
        return out.type_as(x)


class SeesStrides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous().view(torch.int32)


class Slices(nn.Module):
    """Slices that are not no-ops, negative indices among them."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x[:, -2:], x[:, :-1], x[:, ::2], x.expand(3, -1, -1, -1)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.rand_like(x) + torch.rand_like(x)


class Accumulates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        before = x.clone()
        y = x.clone()
        y.add_(1)
        return before + y


class HalfWritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out[..., 0::2] = x[..., 1::2]
        return out


class ReadsBetween(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out[..., 0::2] = x[..., 1::2]
        half = out[..., 0:2] + 1
        out[..., 1::2] = x[..., 0::2]
        return torch.cat([out, half], -1)


def sample(tokens: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def test_rewrites(export, apply, golden):
    program = export(Spellings(), sample(dtype=torch.bfloat16))
    apply(program, canonicalize)
    golden("canonicalize", program)


def test_every_transpose_is_one_permute(export, apply, count):
    program = export(Transposes(), torch.randn(3, 5))
    apply(program, canonicalize)
    assert count(program, "aten.permute") == 1
    assert count(program, "aten.sin") == 1


def test_a_buffer_filled_by_parity_is_a_stack(export, apply, count):
    program = export(InterleavedWrites(), sample(dtype=torch.bfloat16))
    writes, *_ = apply(program, canonicalize)
    assert (writes.sites, writes.hits) == (1, 1)
    assert count(program, "aten.stack") == 1 and count(program, "aten.copy_") == 0


def test_a_copy_that_fixes_strides_stays(export, apply, count, evaluate):
    x = torch.randn(4, 6)
    program = export(SeesStrides(), x)
    apply(program, canonicalize)
    assert count(program, "aten.contiguous") == 1 and count(program, "aten.view") == 1
    assert torch.equal(evaluate(program, nn.Module(), x)[0], SeesStrides()(x))


def test_real_slices_and_expansions_stay(export, apply, count, evaluate):
    program = export(Slices(), sample())
    apply(program, canonicalize)
    assert count(program, "aten.slice") == 3 and count(program, "aten.expand") == 1
    for found, expected in zip(
        evaluate(program, nn.Module(), sample()), Slices()(sample()), strict=True
    ):
        assert torch.equal(found, expected)


def test_two_draws_stay_two(export, apply, count):
    program = export(Random(), sample())
    apply(program, canonicalize)
    assert count(program, "aten.rand_like") == 2


@pytest.mark.parametrize("module", [Accumulates, HalfWritten, ReadsBetween])
def test_other_writes_in_place_are_refused(module, export, apply):
    program = export(module(), sample())
    with pytest.raises(SpecError, match="writes in place") as caught:
        apply(program, canonicalize)
    assert "passes may reorder" in str(caught.value) and "y = y + x" in str(caught.value)
    assert "test_canonicalize.py" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 7])
@pytest.mark.parametrize("module", [Spellings, InterleavedWrites])
def test_keeps_the_numbers(module, tokens, dtype, export, apply, evaluate):
    x = sample(tokens, dtype)
    program = export(module(), x)
    apply(program, canonicalize)
    expected = module()(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for found, wanted in zip(evaluate(program, nn.Module(), x), expected, strict=True):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.mark.parametrize("module", [Spellings, InterleavedWrites, Slices])
def test_is_idempotent(module, export, apply):
    program = export(module(), sample())
    apply(program, canonicalize)
    before = program.digest()
    assert sum(book.hits for book in apply(program, canonicalize)) == 0
    assert program.digest() == before
