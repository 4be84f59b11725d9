"""Which attention a shape gets."""

from __future__ import annotations

import pytest

from llvq.backends.attention_choice import CHOICES, choose_attention
from llvq.backends.implementations import find_implementation


@pytest.mark.parametrize(
    ("chip", "tokens", "head_dim", "expected"),
    [
        ("sm_90a", 7040, 128, "triton:cudnn"),
        ("sm_90a", 7041, 128, "triton"),
        ("sm_90a", 7040, 64, "triton"),
        ("sm_100a", 7040, 128, "triton"),
        (None, 7040, 128, "triton"),
    ],
)
def test_only_what_was_measured_is_chosen(
    chip: str | None, tokens: int, head_dim: int, expected: str
) -> None:
    assert choose_attention(chip, tokens, head_dim, "triton") == expected


def test_every_choice_exists() -> None:
    for choice in CHOICES:
        assert find_implementation(choice.implementation, "paged_attention_quantize_fp8")
