"""Choices of GEMMs are data: each names what exists, and covers what it says."""

from __future__ import annotations

import pytest

from llvq.backends.base import NUMERICS_OF_TARGET, find_target
from llvq.backends.gemm_choice import Choice, choices, choose_gemm
from llvq.backends.implementations import find_implementation
from llvq.passes.lower import GEMMS


@pytest.mark.parametrize("choice", choices())
def test_a_choice_names_a_target_and_an_implementation(choice: Choice) -> None:
    assert choice.chip in NUMERICS_OF_TARGET
    for op in GEMMS:
        assert find_implementation(choice.implementation, op)


def test_no_shape_is_chosen_for_twice() -> None:
    keys = [(c.chip, c.rows, c.features, c.reduction) for c in choices()]
    assert len(set(keys)) == len(keys)


def test_nothing_was_measured_so_every_choice_is_that_of_its_target() -> None:
    for c in choices():
        assert {find_target(c.chip).implementation(op) for op in GEMMS} == {c.implementation}


def test_the_first_choice_that_covers_the_rows_is_taken() -> None:
    few, many = (Choice("sm_100a", rows, 64, 32, name) for rows, name in ((8, "few"), (99, "many")))
    found = [choose_gemm("sm_100a", rows, 64, 32, "default", (few, many)) for rows in (8, 9, 100)]
    assert found == ["few", "many", "default"]
    for chip, features, reduction in (("sm_90a", 64, 32), ("sm_100a", 32, 32), (None, 64, 64)):
        assert choose_gemm(chip, 1, features, reduction, "default", (few, many)) == "default"
