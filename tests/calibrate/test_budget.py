"""Budgets: spelt, spent greedily, and written down with their reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llvq.calibrate.budget import KEPT_BITS, NVFP4_BITS, Kept, parse_budget, spend, with_budget
from llvq.errors import RecipeError
from llvq.recipe import NVFP4, recipe_from_dict


@pytest.mark.parametrize("text", ["4.7bits", "4.7 bits", " 4.7", "4.7bit"])
def test_spellings(text: str) -> None:
    assert parse_budget(text) == 4.7


@pytest.mark.parametrize("text", ["", "bits", "4.4", "17bits", "-5", "4,7", "nan", "1e1"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(RecipeError, match="no budget"):
        parse_budget(text)


def test_energy_per_bit_decides_and_what_does_not_fit_is_passed_over() -> None:
    scores = {"big": 60.0, "small": 30.0, "cheap": 8.0, "dead": 0.0, "rest": 2.0}
    elements = {"big": 600, "small": 100, "cheap": 100, "dead": 1, "rest": 199}
    budget = NVFP4_BITS + (KEPT_BITS - NVFP4_BITS) * 0.2
    found = spend(scores, elements, budget)
    assert found.kept == (Kept("small", 0.3, 100), Kept("cheap", 0.08, 100))
    assert found.share == pytest.approx(0.38) and found.bits == pytest.approx(budget)


layers = st.dictionaries(
    st.text("abc.", min_size=1),
    st.tuples(st.floats(0, 1e6), st.integers(1, 10**6)),
    min_size=1,
)


@given(layers, st.floats(NVFP4_BITS, KEPT_BITS))
def test_a_budget_is_never_exceeded(table: dict[str, tuple[float, int]], budget: float) -> None:
    scores = {name: score for name, (score, _) in table.items()}
    elements = {name: count for name, (_, count) in table.items()}
    found = spend(scores, elements, budget)
    kept = sum(elements[layer.layer] for layer in found.kept)
    bits = NVFP4_BITS + (KEPT_BITS - NVFP4_BITS) * kept / sum(elements.values())
    assert found.bits == pytest.approx(bits) and bits <= budget + 1e-9
    assert found.share <= 1 + 1e-9


def test_the_recipe_says_what_it_keeps_and_why() -> None:
    found = spend({"a": 9.0, "b": 1.0}, {"a": 10, "b": 10}, 11.0)
    recipe = with_budget(NVFP4, found, prefix="dit.")
    assert recipe.excluded_by("dit.a") == "dit.a" and recipe.excluded_by("dit.b") is None
    assert "90.0%" in recipe.linear.because["dit.a"]
    assert recipe.name == "longlive2-nvfp4-10.2bits"
    assert recipe_from_dict(recipe.to_dict()) == recipe
