"""Laws that NVFP4 keeps on any weight."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llvq.formats import nvfp4

SETTINGS = settings(max_examples=30, deadline=None)


def as_bytes(t: Tensor) -> Tensor:
    return t.reshape(-1).view(torch.uint8)


def decode(q: nvfp4.Nvfp4, dtype: torch.dtype = torch.float32) -> Tensor:
    return nvfp4.dequantize(*q, dtype)


def random_weight(seed: int, rows: int = 8, width: int = 64, scale: float = 0.02) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


weights = st.builds(
    random_weight,
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    width=st.integers(1, 6).map(lambda n: n * 16),
    scale=st.sampled_from([1e-8, 0.02, 1.0, 1e6]),
)


@SETTINGS
@given(weights)
def test_max_rule_is_idempotent(x: Tensor) -> None:
    once = nvfp4.quantize(x)
    twice = nvfp4.quantize(decode(once), global_scale=once.global_scale)
    assert torch.equal(decode(twice), decode(once))


@SETTINGS
@given(weights, st.sampled_from(nvfp4.BLOCK_RULES))
def test_error_bound_per_block(x: Tensor, rule: str) -> None:
    """Half the widest E2M1 step (1) plus what the scale's own rounding may clip (6/16)."""
    q = nvfp4.quantize(x, block_rule=rule)
    blocks = x.unflatten(-1, (-1, 16))
    error = (decode(q).unflatten(-1, (-1, 16)) - blocks).square().sum(-1).sqrt()
    step = blocks.abs().amax(-1) / 6
    bound = 4 * (step * (1 + 1 / 16) + q.global_scale * 2.0**-9)  # sqrt(16) elements
    assert (error <= bound).all()


@SETTINGS
@given(weights, st.integers(-30, 30), st.sampled_from(nvfp4.BLOCK_RULES))
def test_powers_of_two_scale_through(x: Tensor, power: int, rule: str) -> None:
    factor = 2.0**power
    q, scaled = nvfp4.quantize(x, block_rule=rule), nvfp4.quantize(x * factor, block_rule=rule)
    assert torch.equal(q.codes, scaled.codes)
    assert torch.equal(as_bytes(q.scales), as_bytes(scaled.scales))
    assert torch.equal(scaled.global_scale, q.global_scale * factor)


@SETTINGS
@given(weights, st.sampled_from(nvfp4.BLOCK_RULES))
def test_odd_and_monotone_within_a_block(x: Tensor, rule: str) -> None:
    values = decode(nvfp4.quantize(x, block_rule=rule))
    assert torch.equal(decode(nvfp4.quantize(-x, block_rule=rule)), -values)
    order = x.unflatten(-1, (-1, 16)).argsort(-1)
    ranked = values.unflatten(-1, (-1, 16)).gather(-1, order)
    assert (ranked.diff(dim=-1) >= 0).all()


def test_each_rule_is_no_worse_than_the_one_it_refines() -> None:
    x = random_weight(6, rows=64, width=256).bfloat16()
    g = nvfp4.global_scale(x.abs().max(), "four_over_six")
    errors = []
    for rule in nvfp4.BLOCK_RULES:
        q = nvfp4.quantize(x, block_rule=rule, global_scale=g)
        errors.append((decode(q) - x.float()).square().unflatten(-1, (-1, 16)).sum(-1))
    assert (errors[1] <= errors[0]).all() and (errors[2] <= errors[1]).all()
    assert errors[2].sum() < errors[1].sum() < errors[0].sum()
