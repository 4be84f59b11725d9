"""Model ops: against torch, diffusers' spelling, complex numbers; both roundings bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.dialect import (
    attention,
    gate_residual,
    norm_modulate,
    rms_norm,
    rms_norm_rope,
    rope,
)

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32])


def angles(tokens: int, pairs: int) -> Tensor:
    return torch.outer(torch.arange(tokens).double(), 0.7 ** torch.arange(pairs).double())


@DTYPES
@pytest.mark.parametrize(
    ("queries", "keys", "scale"), [(1, 1, None), (7, 7, None), (3, 11, 0.25), (1, 5, None)]
)
def test_attention_is_sdpa(
    check_op: Any, randn: Any, dtype: torch.dtype, queries: int, keys: int, scale: float | None
) -> None:
    q = randn(2, queries, 3, 8, dtype=dtype)
    k, v = (randn(2, keys, 3, 8, dtype=dtype) for _ in range(2))
    found = check_op(attention, q, k, v, None, scale)
    heads = (t.transpose(1, 2) for t in (q, k, v))
    expected = F.scaled_dot_product_attention(*heads, scale=scale).transpose(1, 2)
    assert torch.equal(found, expected) and found.is_contiguous()


@pytest.mark.parametrize("kind", ["added", "kept"])
def test_attention_with_a_mask_is_sdpa(check_op: Any, randn: Any, kind: str) -> None:
    q, k, v = randn(2, 3, 2, 8), randn(2, 5, 2, 8), randn(2, 5, 2, 8)
    mask = randn(2, 1, 3, 5)
    mask = mask if kind == "added" else mask > -1
    found = check_op(attention, q, k, v, mask)
    heads = (t.transpose(1, 2) for t in (q, k, v))
    expected = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)
    assert torch.equal(found, expected)


def test_attention_in_plain_words(randn: Any) -> None:
    q, k, v = randn(1, 5, 2, 8), randn(1, 9, 2, 8), randn(1, 9, 2, 6)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(8**-0.5).softmax(-1)
    expected = torch.einsum("bhnm,bmhe->bnhe", weights, v)
    torch.testing.assert_close(attention.reference(q, k, v, None), expected)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 7, 48), (1, 3, 3072)])
def test_rms_norm_is_that_of_torch(
    check_op: Any, randn: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    found = check_op(rms_norm, x, weight, 1e-6, False)
    assert torch.equal(found, F.rms_norm(x, shape[-1:], weight, 1e-6))


@DTYPES
def test_rms_norm_that_rounds_before_its_weight(
    check_op: Any, randn: Any, dtype: torch.dtype
) -> None:
    x, weight = randn(2, 7, 48, dtype=dtype), randn(48, dtype=dtype)
    found = check_op(rms_norm, x, weight, 1e-6, True)
    assert torch.equal(found, F.rms_norm(x, (48,), eps=1e-6) * weight)


def test_the_two_roundings_of_rms_norm_differ_in_bf16(randn: Any) -> None:
    x, weight = randn(4, 7, 48, dtype=BF16), randn(48, dtype=BF16)
    first, last = (rms_norm.reference(x, weight, 1e-6, flag) for flag in (True, False))
    assert not torch.equal(first, last)


@DTYPES
@pytest.mark.parametrize("tokens", [1, 7])
def test_rope_multiplies_complex_numbers(
    check_op: Any, randn: Any, dtype: torch.dtype, tokens: int
) -> None:
    x, theta = randn(2, tokens, 3, 8, dtype=dtype), angles(tokens, 4)
    found = check_op(rope, x, theta.cos().float(), theta.sin().float())
    pairs = torch.view_as_complex(x.double().unflatten(-1, (4, 2)))
    turned = pairs * torch.polar(torch.ones_like(theta), theta)[:, None]
    expected = torch.view_as_real(turned).flatten(-2).to(dtype)
    torch.testing.assert_close(found, expected)


def diffusers_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """How diffusers writes it (FP32LayerNorm, fp32 modulation of the whole sequence)."""
    normed = F.layer_norm(x.float(), x.shape[-1:], None, None, eps)
    return (normed * (1 + scale) + shift).type_as(x)


@DTYPES
@pytest.mark.parametrize("tokens", [1, 7])
def test_norm_modulate_in_fp32_is_that_of_diffusers(
    check_op: Any, randn: Any, dtype: torch.dtype, tokens: int
) -> None:
    x = randn(2, tokens, 48, dtype=dtype)
    scale, shift = randn(2, 1, 48), randn(2, 1, 48)
    found = check_op(norm_modulate, x, scale, shift, 1e-6)
    assert torch.equal(found, diffusers_norm(x, scale, shift, 1e-6))


@DTYPES
@pytest.mark.parametrize(("groups", "tokens"), [(1, 1), (1, 7), (3, 15), (5, 5)])
def test_norm_modulate_rounds_each_step_in_the_dtype_of_x(
    check_op: Any, randn: Any, dtype: torch.dtype, groups: int, tokens: int
) -> None:
    x = randn(2, tokens, 48, dtype=dtype)
    scale, shift = (randn(2, groups, 48, dtype=dtype) for _ in range(2))
    found = check_op(norm_modulate, x, scale, shift, 1e-6)
    normed = F.layer_norm(x.float(), (48,), eps=1e-6).to(dtype)
    scale, shift = (t.repeat_interleave(tokens // groups, dim=1) for t in (scale, shift))
    assert torch.equal(found, normed * (1 + scale) + shift)


@DTYPES
@pytest.mark.parametrize("round_first", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
def test_rms_norm_rope_is_its_parts(
    check_op: Any, randn: Any, dtype: torch.dtype, round_first: bool, tokens: int
) -> None:
    x, weight = randn(1, tokens, 48, dtype=dtype), randn(48, dtype=dtype)
    theta = angles(tokens, 8)
    cos, sin = theta.cos().float(), theta.sin().float()
    found = check_op(rms_norm_rope, x, weight, cos, sin, 3, 1e-6, round_first)
    normed = rms_norm.overload(x, weight, 1e-6, round_first)
    assert torch.equal(found, rope.overload(normed.unflatten(-1, (3, 16)), cos, sin))


@pytest.mark.parametrize(("dtype", "gate_dtype"), [(BF16, BF16), (BF16, FP32), (FP32, FP32)])
@pytest.mark.parametrize(("groups", "tokens"), [(1, 1), (1, 7), (3, 15), (5, 5)])
def test_gate_residual_rounds_where_its_gate_says(
    check_op: Any,
    randn: Callable[..., Tensor],
    dtype: torch.dtype,
    gate_dtype: torch.dtype,
    groups: int,
    tokens: int,
) -> None:
    x, y = (randn(2, tokens, 48, dtype=dtype) for _ in range(2))
    gate = randn(2, groups, 48, dtype=gate_dtype)
    found = check_op(gate_residual, x, y, gate)
    wide = gate.repeat_interleave(tokens // groups, dim=1)
    rounded_once = (x.float() + y.float() * wide).to(dtype)
    assert torch.equal(found, x + y * wide if gate_dtype == dtype else rounded_once)
