"""Compare the keys of a checkpoint with those of a model, and say everything in one error."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from llvq.errors import CheckpointError
from llvq.sources import TensorSpec

LISTED_IN_FULL = 20


def check_keys(
    found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec], what: str
) -> None:
    """Same names and shapes, and floating point where floating point is expected.

    `what`: the thing checked, in words. The precision may differ: weights are converted later.
    Errors: one CheckpointError that lists all missing, surplus and misshapen keys.
    """
    missing = [f"{name} {list(expected[name].shape)}" for name in expected if name not in found]
    surplus = [f"{name} {list(found[name].shape)}" for name in found if name not in expected]
    both = [name for name in expected if name in found]
    differing = [text for name in both if (text := _difference(name, found[name], expected[name]))]
    groups = {"missing": missing, "surplus": surplus, "misshapen": differing}
    if not any(groups.values()):
        return
    counts = ", ".join(f"{len(rows)} {label}" for label, rows in groups.items() if rows)
    lists = [f"{label}: {_listing(rows)}" for label, rows in groups.items() if rows]
    raise CheckpointError(
        f"{what} has other keys than expected: {counts}",
        because="\n           ".join(lists),
        fix="check that the file is of this model family and complete",
    )


def _difference(name: str, found: TensorSpec, expected: TensorSpec) -> str | None:
    if found.shape != expected.shape:
        return f"{name} is {list(found.shape)}, not {list(expected.shape)}"
    if expected.dtype.is_floating_point and not found.dtype.is_floating_point:
        return f"{name} is {found.dtype}, not floating point"
    return None


def _listing(rows: Sequence[str]) -> str:
    if len(rows) <= LISTED_IN_FULL:
        return "; ".join(rows)
    groups: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        groups[re.sub(r"\.\d+\.", ".*.", row, count=1)].append(row)
    return "; ".join(
        members[0] if len(members) == 1 else f"{pattern} (x{len(members)})"
        for pattern, members in groups.items()
    )
