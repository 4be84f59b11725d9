"""The generated documents are up to date, and their tables speak of what the code has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from docs import generate
from llvq.errors import RecipeError
from llvq.passes import PIPELINE
from llvq.passes.lowering import LOWERINGS, STREAMING
from llvq.recipe import NVFP4, recipe_from_dict


@pytest.mark.parametrize("path", generate.documents(), ids=lambda path: path.name)
def test_a_committed_document_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generate.documents()[path], (
        "run: python -m docs.generate"
    )


def test_every_pass_has_a_section() -> None:
    text = generate.documents()[generate.DOCS / "passes.md"]
    lowerings = (step for steps in LOWERINGS.values() for step in steps)
    assert all(f"\n## {step.name}\n" in text for step in (*PIPELINE, *STREAMING, *lowerings))


def test_every_recipe_key_is_explained() -> None:
    assert dict(generate.recipe_keys(NVFP4)).keys() == generate.KEYS.keys()


@pytest.mark.parametrize("key", generate.CHOICES)
def test_the_choices_are_all_there_are(key: str) -> None:
    is_list = isinstance(dict(generate.recipe_keys(NVFP4))[key], tuple)
    for choice in generate.CHOICES[key]:
        recipe_from_dict(nested(key, [choice] if is_list else choice))
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(nested(key, ["no such choice"] if is_list else "no such choice"))
    assert str(caught.value).endswith(f"known: {', '.join(generate.CHOICES[key])}")


def nested(key: str, value: Any) -> dict[str, Any]:
    """`linear.weight_rule` as the tables of a TOML file."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}
