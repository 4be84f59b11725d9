"""Recipes in the documentation and in examples/ load, and say what their comments say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs.generate import DOCS
from llvq.recipe import BF16, NVFP4, load_recipe, recipe_from_dict

EXAMPLES = sorted((DOCS.parent / "examples" / "recipes").glob("*.toml"))
BLOCKS = re.findall(r"^```toml\n(.*?)^```", (DOCS / "recipes.md").read_text(), re.S | re.M)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads(path: Path) -> None:
    assert load_recipe(str(path)) != NVFP4


@pytest.mark.parametrize("text", BLOCKS, ids=lambda text: text.splitlines()[0])
def test_a_block_of_the_page_loads(text: str) -> None:
    recipe_from_dict(tomllib.loads(text))


def test_the_last_block_is_the_builtin_bf16() -> None:
    assert recipe_from_dict({"name": "bf16", **tomllib.loads(BLOCKS[-1])}) == BF16


def test_careful_keeps_the_default_exclusions() -> None:
    recipe = load_recipe(str(DOCS.parent / "examples" / "recipes" / "careful.toml"))
    assert recipe.linear.exclude[: len(NVFP4.linear.exclude)] == NVFP4.linear.exclude
    assert recipe.excluded_by("dit.blocks.29.self_attn.q") == "*blocks.29.*"
    assert recipe.excluded_by("dit.blocks.2.self_attn.q") is None
    assert recipe.name == "careful"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_page_links_an_example(path: Path) -> None:
    assert f"(../examples/recipes/{path.name})" in (DOCS / "recipes.md").read_text()
