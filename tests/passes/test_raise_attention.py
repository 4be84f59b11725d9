from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.errors import MissError
from llvq.passes.canonicalize import canonicalize
from llvq.passes.raise_attention import raise_attention


class TokensFirst(nn.Module):
    """LongLive's layout and, with `permute`, diffusers': heads swapped in and out again."""

    def __init__(self, permute: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.permute, self.scale = permute, scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        swap = (lambda t: t.permute(0, 2, 1, 3)) if self.permute else (lambda t: t.transpose(1, 2))
        out = F.scaled_dot_product_attention(swap(q), swap(k), swap(v), scale=self.scale)
        return swap(out).flatten(2, 3)


class HeadsFirst(nn.Module):
    """q, k and v come with heads first and the result stays so."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v) + 1


class Masked(nn.Module):
    """A mask with a value per query and key, as a text encoder's bias."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = q.mean(-1)[..., None] - k.mean(-1)[:, :, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Near(nn.Module):
    """Attention that `llvq.attention` does not compute."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kind == "dropout":
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
        if self.kind == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.kind == "one batch of keys":
            return F.scaled_dot_product_attention(q, k[:1], v[:1])
        return F.scaled_dot_product_attention(q[0], k[0], v[0])


NEAR = {
    "dropout": "argument 'dropout_p' is 0.1",
    "causal": "argument 'is_causal' is True",
    "one batch of keys": "the rule does not broadcast",
    "three dims": "q has 3 dims",
}


def qkv(tokens: int, keys: int, *, heads_first: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(2, n, 4, 16) for n in (tokens, keys, keys)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return tuple(t.transpose(1, 2).contiguous() if heads_first else t for t in made)


@pytest.mark.parametrize("permute", [False, True])
def test_rewrites(permute, export, apply, golden):
    program = export(TokensFirst(permute, scale=0.5), *qkv(6, 5))
    (book,) = apply(program, canonicalize, raise_attention)
    assert (book.sites, book.hits) == (1, 1)
    golden("raise_attention", program)  # One text: two spellings, one result.


@pytest.mark.parametrize("kind", NEAR)
def test_leaves_near_misses_alone(kind, export, apply):
    program = export(Near(kind), *qkv(6, 6, heads_first=True))
    with pytest.raises(MissError) as caught:
        apply(program, canonicalize, raise_attention)
    assert NEAR[kind] in str(caught.value)


@pytest.mark.parametrize(("tokens", "keys"), [(6, 5), (17, 33)])
@pytest.mark.parametrize("module", [TokensFirst(), TokensFirst(True, 0.3), HeadsFirst(), Masked()])
def test_keeps_the_numbers(module, tokens, keys, export, apply, evaluate):
    inputs = qkv(tokens, keys, heads_first=isinstance(module, HeadsFirst | Masked))
    program = export(module, *inputs)
    apply(program, canonicalize, raise_attention)
    # The same kernel on other strides.
    torch.testing.assert_close(evaluate(program, module, *inputs)[0], module(*inputs))


def test_is_idempotent(export, apply):
    program = export(TokensFirst(), *qkv(6, 5))
    apply(program, canonicalize, raise_attention)
    (book,) = apply(program, raise_attention)
    assert (book.sites, book.hits) == (0, 0)
