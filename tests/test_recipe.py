"""Recipes: read from TOML, every key known, every value of its type."""

from __future__ import annotations

from pathlib import Path

import pytest

from llvq.errors import RecipeError
from llvq.recipe import (
    BF16,
    BUILTIN,
    NVFP4,
    KvRecipe,
    LinearRecipe,
    Recipe,
    load_recipe,
    recipe_from_dict,
)


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(document: dict[str, object]) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(document)
    return str(caught.value)


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_recipes_go_by_their_name(name: str) -> None:
    assert load_recipe(name) is BUILTIN[name] and BUILTIN[name].name == name


def test_a_file_changes_what_it_names_and_takes_the_rest_from_nvfp4(tmp_path: Path) -> None:
    text = """
    dtype = "float32"
    [linear]
    weight_rule = "max"
    exclude = ["*head*"]
    [allow_miss."raise-attention"]
    "blocks.0.*" = "masked"
    """
    recipe = load_recipe(written(tmp_path, text))
    assert recipe == Recipe(
        name="mine",
        dtype="float32",
        linear=LinearRecipe(weight_rule="max", exclude=("*head*",)),
        allow_miss={"raise-attention": {"blocks.0.*": "masked"}},
    )


def test_an_empty_file_is_nvfp4_by_another_name(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, ""))
    assert recipe.to_dict() == NVFP4.to_dict() | {"name": "mine"}


@pytest.mark.parametrize("recipe", BUILTIN.values(), ids=BUILTIN)
def test_what_a_box_records_reads_back(recipe: Recipe) -> None:
    assert recipe_from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("document", "nearest"),
    [
        ({"linaer": {}}, "linear"),
        ({"linear": {"weight_rul": "max"}}, "linear.weight_rule"),
        ({"kv": {"fromat": "fp8"}}, "kv.format"),
        ({"decode": {"latents": 2}}, "decode.latents_per_call"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(
    document: dict[str, object], nearest: str
) -> None:
    message = refused(document)
    assert "no recipe key" in message and f"did you mean {nearest!r}?" in message


@pytest.mark.parametrize(
    ("document", "nearest"),
    [
        ({"dtype": "bfloat"}, "bfloat16"),
        ({"linear": {"weight_rule": "four_over_sex"}}, "four_over_six"),
        ({"linear": {"activation_rule": "maximum"}}, "max"),
        ({"kv": {"format": "nvfp"}}, "nvfp4"),
    ],
)
def test_an_unknown_rule_is_refused_with_the_nearest(
    document: dict[str, object], nearest: str
) -> None:
    assert f"did you mean {nearest!r}?" in refused(document)


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"name": 3}, "name"),
        ({"dtype": ["bfloat16"]}, "dtype"),
        ({"linear": "nvfp4"}, "linear"),
        ({"linear": {"exclude": "*head*"}}, "linear.exclude"),
        ({"linear": {"exclude": ["*head*", 3]}}, "linear.exclude"),
        ({"kv": {"format": True}}, "kv.format"),
        ({"decode": {"latents_per_call": True}}, "decode.latents_per_call"),
        ({"decode": {"latents_per_call": "2"}}, "decode.latents_per_call"),
        ({"allow_miss": "all"}, "allow_miss"),
        ({"allow_miss": {"raise-attention": "*"}}, "allow_miss"),
        ({"allow_miss": {"raise-attention": {"*": 1}}}, "allow_miss"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(document: dict[str, object], key: str) -> None:
    message = refused(document)
    assert f"recipe key {key!r}" in message and "fix" in message


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match="no recipe 'longlive'") as caught:
        load_recipe("longlive")
    assert "longlive2-nvfp4" in str(caught.value)


@pytest.mark.parametrize("content", [b"linear = [", b"\xff\xfe"])
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.toml is not TOML"):
        load_recipe(str(path))


def test_the_outer_linears_are_excluded_by_name() -> None:
    assert NVFP4.excluded_by("dit.head.head") == "*head.head"
    assert NVFP4.excluded_by("dit.text_embedding.0") == "*text_embedding.*"
    assert NVFP4.excluded_by("dit.blocks.0.ffn.2") is None
    assert BF16.excluded_by("dit.blocks.0.ffn.2") == "*"


def test_reasons_belong_to_globs_that_are_excluded() -> None:
    linear = {"exclude": ["a.*", "b"], "because": {"b": "it carries the colour"}}
    recipe = recipe_from_dict({"linear": linear})
    assert recipe.linear.because == {"b": "it carries the colour"}
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert "did you mean 'b'?" in refused(
        {"linear": {"exclude": ["a.*", "b"], "because": {"bb": ""}}}
    )
    assert "linear.because" in refused({"linear": {"because": ["b"]}})


@pytest.mark.parametrize("keep", [["sink"], ["newest"], ["sink", "newest"]])
def test_chunks_may_be_kept(keep: list[str]) -> None:
    recipe = recipe_from_dict({"kv": {"keep": keep}})
    assert recipe.kv == KvRecipe("nvfp4", tuple(keep))


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no kv\.keep 'sinks'") as caught:
        recipe_from_dict({"kv": {"keep": ["sinks"]}})
    assert "did you mean 'sink'?" in str(caught.value.fix)
    with pytest.raises(RecipeError, match="keeps nothing"):
        recipe_from_dict({"kv": {"format": "none", "keep": ["sink"]}})
    with pytest.raises(RecipeError, match="is 'sink'"):
        recipe_from_dict({"kv": {"keep": "sink"}})


def test_scores_may_be_in_four_bits() -> None:
    recipe = recipe_from_dict({"kv": {"qk": "nvfp4"}})
    assert recipe.kv == KvRecipe("nvfp4", qk="nvfp4") and NVFP4.kv.qk == "none"
    assert "did you mean 'nvfp4'?" in refused({"kv": {"qk": "nvfp"}})


@pytest.mark.parametrize("kv_format", ["none", "fp8", "int4"])
def test_scores_in_four_bits_need_pages_in_them(kv_format: str) -> None:
    message = refused({"kv": {"qk": "nvfp4", "format": kv_format}})
    assert f"cannot multiply pages of kv.format = '{kv_format}'" in message
    assert 'set kv.format = "nvfp4"' in message


def test_scores_in_four_bits_and_kept_chunks_exclude_each_other() -> None:
    message = refused({"kv": {"qk": "nvfp4", "keep": ["sink"]}})
    assert "multiplies nothing beside kv.keep = ['sink']" in message
