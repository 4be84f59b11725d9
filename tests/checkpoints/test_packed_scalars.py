"""Scales as other tools write them: what reads back, and how far off what does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llvq.checkpoints.packed_layouts import Meaning
from llvq.checkpoints.packed_scalars import decode_scale, stored_scale
from llvq.formats.nvfp4 import global_scale

AMAX = st.floats(min_value=2.0**-60, max_value=2.0**60, width=32)
MEANINGS = st.sampled_from(("decode", "reciprocal", "amax"))


@given(AMAX, MEANINGS, st.sampled_from((1536.0, 2688.0)))
def test_what_was_read_is_written_so_that_it_reads_the_same(
    stored: float, meaning: Meaning, full: float
) -> None:
    g = decode_scale(torch.tensor(stored), meaning, full)
    assert decode_scale(stored_scale(g, meaning, full), meaning, full) == g


@given(AMAX, MEANINGS)
def test_any_scale_reads_back_within_one_step_of_fp32(scale: float, meaning: Meaning) -> None:
    g = torch.tensor(scale)
    back = decode_scale(stored_scale(g, meaning), meaning)
    assert (back - g).abs() <= torch.nextafter(g, torch.tensor(torch.inf)) - g


@pytest.mark.parametrize(("rule", "full"), [("four_over_six", 1536.0), ("max", 2688.0)])
@given(AMAX)
def test_an_amax_is_divided_as_the_quantizer_divides_it(
    rule: str, full: float, amax: float
) -> None:
    value = torch.tensor(amax)
    assert decode_scale(value, "amax", full) == global_scale(value, rule)
    assert decode_scale(torch.zeros(1), "amax", full) == 1


def test_any_shape_of_one_number_will_do() -> None:
    assert decode_scale(torch.tensor([4.0]), "reciprocal").shape == ()
    assert decode_scale(torch.tensor([4.0]), "reciprocal") == 0.25
