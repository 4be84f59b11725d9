"""Rotary positions against complex exponentials, and against their one defining property."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llvq.models.rope import apply_rope, axis_angles, axis_dims, rope_tables


def complex_table(positions: Tensor, rows: int, columns: int, head_dim: int) -> Tensor:
    """exp(i * angle) [frames * rows * columns, D / 2], one token and one axis after the other."""
    pairs = (head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6)
    tokens = [
        torch.cat(
            [
                torch.exp(1j * place * 10000.0 ** (-2 * torch.arange(n).double() / (2 * n)))
                for place, n in zip((frame.item(), row, column), pairs, strict=True)
            ]
        )
        for frame in positions
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.stack(tokens)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("start", [0.0, 17.0, 4096.5])
def test_tables_are_complex_exponentials(head_dim: int, start: float) -> None:
    positions = torch.arange(3, dtype=torch.float64) + start
    cos, sin = rope_tables(positions, 2, 5, head_dim)
    expected = complex_table(positions, 2, 5, head_dim)
    assert cos.dtype == sin.dtype == torch.float32
    assert torch.equal(cos, expected.real.float()) or torch.allclose(
        cos.double(), expected.real, atol=1e-7, rtol=0
    )
    torch.testing.assert_close(sin.double(), expected.imag, atol=1e-7, rtol=0)


def test_a_head_of_128_splits_44_42_42() -> None:
    assert axis_dims(128) == (44, 42, 42)
    for head_dim in range(16, 257, 16):
        assert sum(axis_dims(head_dim)) == head_dim
        assert all(dim % 2 == 0 for dim in axis_dims(head_dim))


def test_angles_are_exact_far_into_a_video() -> None:
    far = axis_angles(torch.tensor([1e6], dtype=torch.float64), 44)
    assert far.dtype == torch.float64 and far[0, 0] == 1e6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rotation_multiplies_by_the_table(dtype: torch.dtype) -> None:
    x = torch.randn(2, 12, 3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    positions = torch.arange(2, dtype=torch.float64) + 5
    found = apply_rope(x, *rope_tables(positions, 2, 3, 16))
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    turned = pairs * complex_table(positions, 2, 3, 16)[:, None]
    torch.testing.assert_close(found, torch.view_as_real(turned).flatten(-2).to(dtype))


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 4, 2, 16, generator=torch.Generator().manual_seed(1)).unbind()

    def scores(shift: float) -> Tensor:
        places = torch.arange(4, dtype=torch.float64) + shift
        table = rope_tables(places, 1, 1, 16)
        return torch.einsum("bnhd,bmhd->bhnm", apply_rope(q, *table), apply_rope(k, *table))

    torch.testing.assert_close(scores(0.0), scores(40.0), atol=1e-5, rtol=1e-5)
