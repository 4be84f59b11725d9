"""The parts of a manifest that are for people and reports: recipe, passes, weights, unchecked.

The runtime does not follow them, so `open_box` lets them be. Tables do, and look only at what has
been checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llvq.artifact.manifest import damaged

# A type; a list of one form; a dict of required entries; a dict of "*" alone, whose values are all
# of that form.
RECORDS: dict[str, Any] = {
    "recipe": {
        "name": str,
        "dtype": str,
        "linear": {"weight_rule": str, "activation_rule": str, "exclude": [str]},
        "kv": {"format": str},
        "allow_miss": {"*": {"*": str}},
    },
    "passes": [
        {
            "name": str,
            "level": str,
            "numerics": str,
            "nodes": [int],
            "ops": {"*": [int]},
            "books": [
                {
                    "rule": str,
                    "hits": int,
                    "stopped": int,
                    "excluded": {"*": int},
                    "tolerated": {"*": int},
                    "misses": list,
                }
            ],
        }
    ],
    "weights": {"*": {"op": str, "sources": [str]}},
    "unchecked": {"*": str},
    "implementations": {"*": {"*": int}},
    "lora": [{"name": str, "sha256": str, "rank": int, "alpha": float, "layers": int}],
}


def check_records(manifest: Mapping[str, Any], *, where: str) -> None:
    """Raises ArtifactError listing what has another form."""
    problems = list(_problems(manifest, RECORDS, ""))
    problems += [
        f"passes.{index}.nodes is not a count before and one after"
        for index, row in enumerate(manifest["passes"])
        if not problems and len(row["nodes"]) != 2
    ]
    if problems:
        raise damaged(
            "manifest.json has wrong fields", where=where, because="; ".join(problems[:5])
        )


def _problems(value: Any, form: Any, path: str) -> Iterator[str]:
    kind = form if isinstance(form, type) else type(form)
    fits: bool = isinstance(value, kind)
    # A bool is an int to isinstance.
    if not fits or (kind is int and type(value) is bool):
        yield f"{path} is not a {kind.__name__}"
    elif isinstance(form, list):
        for index, item in enumerate(value):
            yield from _problems(item, form[0], f"{path}.{index}")
    elif isinstance(form, dict) and "*" in form:
        for name, item in value.items():
            yield from _problems(item, form["*"], f"{path}.{name[:80]}")
    elif isinstance(form, dict):
        for name, entry in form.items():
            place = f"{path}.{name}".removeprefix(".")
            if name in value:
                yield from _problems(value[name], entry, place)
            else:
                yield f"{place} is missing"
