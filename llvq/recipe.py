"""A recipe: every choice that a user makes about a quantization, as frozen data.

Read from TOML; an unknown key is refused with the nearest known one. The resolved recipe travels
in the artifact.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llvq.errors import RecipeError
from llvq.formats.kv import KV_FORMATS
from llvq.formats.nvfp4 import BLOCK_RULES
from llvq.runtime.pages import KEEPABLE

DTYPES = ("bfloat16", "float32")
QK_FORMATS = ("none", "nvfp4")
CONV_FORMATS = ("none", "fp8")

# LongLive-2.0 keeps its six outer linears in bf16; VAE and text encoder are not denoiser layers.
OUTER_LINEARS = (
    "*text_embedding.*",
    "*time_embedding.*",
    "*time_projection.*",
    "*head.head",
)


@dataclass(frozen=True)
class LinearRecipe:
    """How linears become NVFP4. `exclude` are globs over module paths, kept as they are.

    `because` maps globs of `exclude` to the reason, which `llvq quantize --budget` writes.
    """

    weight_rule: str = "four_over_six"
    activation_rule: str = "four_over_six"
    exclude: tuple[str, ...] = OUTER_LINEARS
    because: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KvRecipe:
    """How pages of the KV cache are held: a format, or none (the model's dtype).

    `keep` names chunks that are attended in the model's dtype all the same. `qk` is what Q and K
    are multiplied in: none (the model's dtype), or nvfp4, which multiplies pages as they are.
    """

    format: str = "nvfp4"
    keep: tuple[str, ...] = ()
    qk: str = "none"


@dataclass(frozen=True)
class DecodeRecipe:
    """How frames are decoded. More latents per call are faster and need more memory.

    `conv` is what convolutions that follow a norm multiply: none (the model's dtype), or fp8.
    """

    latents_per_call: int = 1
    conv: str = "none"


@dataclass(frozen=True)
class Recipe:
    """All choices. `allow_miss` maps a pass name to {module glob: reason}."""

    name: str = "longlive2-nvfp4"
    dtype: str = "bfloat16"
    linear: LinearRecipe = field(default_factory=LinearRecipe)
    kv: KvRecipe = field(default_factory=KvRecipe)
    decode: DecodeRecipe = field(default_factory=DecodeRecipe)
    allow_miss: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _choose("dtype", self.dtype, DTYPES)
        _choose("linear.weight_rule", self.linear.weight_rule, BLOCK_RULES)
        _choose("linear.activation_rule", self.linear.activation_rule, BLOCK_RULES)
        _choose("kv.format", self.kv.format, tuple(KV_FORMATS))
        _choose("kv.qk", self.kv.qk, QK_FORMATS)
        _choose("decode.conv", self.decode.conv, CONV_FORMATS)
        _check_keep(self.kv)
        _check_qk(self.kv)
        for glob in self.linear.because:
            if glob not in self.linear.exclude:
                raise unknown("glob of linear.exclude", glob, list(self.linear.exclude))

    def excluded_by(self, module: str) -> str | None:
        """The first glob that keeps a linear out of NVFP4, or None."""
        return next((glob for glob in self.linear.exclude if fnmatchcase(module, glob)), None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_recipe(name_or_path: str) -> Recipe:
    """A builtin recipe by name, or a TOML file."""
    if name_or_path in BUILTIN:
        return BUILTIN[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise RecipeError(
            f"no recipe {name_or_path!r}",
            because="it is neither a file nor a builtin recipe",
            fix=f"use one of {', '.join(BUILTIN)}, or a .toml file",
        )
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} is not TOML", because=str(error), fix="see docs/recipes.md for an example"
        ) from error
    return recipe_from_dict({"name": path.stem, **document})


def recipe_from_dict(document: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested mappings; every key must be known."""
    return _build(NVFP4, document, "")


def _build(base: Any, document: Mapping[str, Any], prefix: str) -> Any:
    known = {f.name: getattr(base, f.name) for f in fields(base)}
    changes: dict[str, Any] = {}
    for key, value in document.items():
        if key not in known:
            raise unknown("recipe key", prefix + key, [prefix + name for name in known])
        changes[key] = _convert(known[key], value, prefix + key)
    return replace(base, **changes)


def _convert(default: Any, value: Any, name: str) -> Any:
    if is_dataclass(default):
        if not isinstance(value, Mapping):
            raise RecipeError(f"recipe key {name!r} is a table", fix=f"write [{name}]")
        return _build(default, value, name + ".")
    if name == "linear.because":
        fits, form = _is_texts(value), f'[{name}] and below it "module glob" = "why"'
    elif isinstance(default, Mapping):
        fits, form = _is_tolerance(value), f'[{name}."pass"] and below it "module glob" = "why"'
    elif isinstance(default, tuple):
        fits, form = _is_strings(value), f'{name} = ["...", "..."]'
    elif isinstance(default, int):
        fits, form = type(value) is int, f"{name} = {default}"
    else:
        fits, form = isinstance(value, str), f'{name} = "..."'
    if not fits:
        raise RecipeError(
            f"recipe key {name!r} is {value!r}", because="its type is wrong", fix=f"write {form}"
        )
    return tuple(value) if isinstance(default, tuple) else value


def _is_strings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and _is_strings([*value, *value.values()])


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_texts, value.values()))


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise unknown(name, value, list(choices))


def _check_keep(kv: KvRecipe) -> None:
    for name in kv.keep:
        _choose("kv.keep", name, KEEPABLE)
    if kv.keep and kv.format == "none":
        raise RecipeError(
            f"kv.keep = {list(kv.keep)} keeps nothing",
            because='pages of kv.format = "none" are in the dtype of the model already',
            fix="leave out kv.keep, or choose a format that rounds",
        )


def _check_qk(kv: KvRecipe) -> None:
    if kv.qk == "none":
        return
    if kv.format != kv.qk:
        raise RecipeError(
            f"kv.qk = {kv.qk!r} cannot multiply pages of kv.format = {kv.format!r}",
            because="tensor cores take the codes of K as pages hold them",
            fix=f'set kv.format = "{kv.qk}", or leave out kv.qk',
        )
    if kv.keep:
        raise RecipeError(
            f"kv.qk = {kv.qk!r} multiplies nothing beside kv.keep = {list(kv.keep)}",
            because="layers that keep chunks are attended in the dtype of the model as a whole",
            fix="leave out kv.keep or kv.qk",
        )


def unknown(what: str, name: str, known: list[str]) -> RecipeError:
    """The error for a name that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    because = f"it is not one of the {len(known)} that exist"
    return RecipeError(
        f"no {what} {name!r}", because=because, fix=f"{hint}known: {', '.join(known)}"
    )


NVFP4 = Recipe()
BF16 = Recipe(name="bf16", linear=LinearRecipe(exclude=("*",)), kv=KvRecipe(format="none"))
BUILTIN = {"longlive2-nvfp4": NVFP4, "bf16": BF16}
