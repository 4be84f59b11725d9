"""A recipe as a TOML file, for what llvq chose itself and a user wants to keep or change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llvq.recipe import Recipe


def to_toml(recipe: Recipe) -> str:
    """The recipe as a file that `load_recipe` reads back; its name is that of the file."""
    document = recipe.to_dict()
    document.pop("name")
    return "\n".join(_toml_table(document, ())).lstrip("\n") + "\n"


def _toml_table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Plain values first: what follows a table's head belongs to the table."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in plain.items()]
    if path and lines:
        lines = ["", f"[{'.'.join(map(_toml_key, path))}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _toml_table(value, (*path, key))
    return lines


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _toml_value(value: Any) -> str:
    # JSON spells strings, numbers and booleans as TOML does.
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value)
