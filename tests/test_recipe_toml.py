"""TOML that is written is the recipe that is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llvq.recipe import BUILTIN, Recipe, load_recipe
from llvq.recipe_toml import to_toml


@pytest.mark.parametrize("recipe", BUILTIN.values(), ids=BUILTIN)
def test_a_recipe_as_toml_is_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    linear = replace(recipe.linear, because=dict.fromkeys(recipe.linear.exclude, 'a "why" \\ \t'))
    full = replace(recipe, linear=linear, allow_miss={"raise-attention": {"a.*": "masked"}})
    path = tmp_path / "mine.toml"
    for made in (recipe, full):
        path.write_text(to_toml(made), encoding="utf-8")
        assert load_recipe(str(path)) == replace(made, name="mine")


def test_it_reads_like_one_written_by_hand() -> None:
    text = to_toml(BUILTIN["bf16"])
    assert text.startswith('dtype = "bfloat16"\n\n[linear]\n')
    assert 'exclude = ["*"]' in text and '[kv]\nformat = "none"' in text
