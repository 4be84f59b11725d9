"""Two spellings of the names of one model's tensors: a table that is read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from llvq.errors import CheckpointError

NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")

Rows = Sequence[tuple[str, str]]


class NameTable:
    """`rows`: (left, right), each the path of a module or of a tensor.

    {} is any number, as often on both sides and in the same order; other numbers stand for
    themselves. What follows the path of a module (`weight`, `bias`, `input_scale`) is the same in
    both spellings. `left` and `right` say in words whose spelling each is.
    """

    def __init__(self, left: str, right: str, rows: Rows) -> None:
        self.left, self.right, self.rows = left, right, tuple(rows)
        self._to_right = _by_shape(rows)
        self._to_left = _by_shape([(b, a) for a, b in rows])

    def to_left(self, name: str) -> str | None:
        """The name in the left spelling; None for one that the right spelling does not have."""
        return _translated(self._to_left, name)

    def to_right(self, name: str) -> str | None:
        return _translated(self._to_right, name)

    def in_left(self, names: Mapping[str, str], path: Path) -> tuple[dict[str, str], str | None]:
        """The keys of `names` in the left spelling, and whose spelling they had (None: no one's).

        Keys that the table does not know stay as they are. Raises CheckpointError if some keys have
        one spelling and some the other.
        """
        lefts = {name: self.to_left(name) for name in names}
        in_right = next((n for n, left in lefts.items() if left not in (None, n)), None)
        in_left = next((n for n in names if self.to_right(n) not in (None, n)), None)
        if in_right is None:
            return dict(names), None if in_left is None else self.left
        if in_left is None:
            return {lefts[name] or name: names[name] for name in names}, self.right
        raise CheckpointError(
            f"{path.name} mixes two spellings of its names",
            where=str(path),
            because=f"{names[in_left]} is {self.left}, {names[in_right]} is {self.right}",
            fix="keep the tensors of one checkpoint in the file or folder",
        )


def _by_shape(rows: Rows) -> dict[str, list[tuple[list[str | None], str]]]:
    """Path with its numbers taken out -> the numbers asked for (None: any), and the other path."""
    table: dict[str, list[tuple[list[str | None], str]]] = {}
    for source, target in rows:
        numbers = [None if n == "{}" else n for n in re.findall(r"\{\}|" + NUMBER.pattern, source)]
        shape = NUMBER.sub("{}", source)
        table.setdefault(shape, []).append((numbers, target))
    return table


def _translated(table: Mapping[str, list[tuple[list[str | None], str]]], name: str) -> str | None:
    module, _, last = name.rpartition(".")
    for path, tail in ((name, ""), (module, f".{last}")):
        found = NUMBER.findall(path)
        for wanted, target in table.get(NUMBER.sub("{}", path), ()):
            # A name may itself hold {}, and has then fewer numbers than its path has places.
            if len(wanted) == len(found) and all(
                w in (None, n) for w, n in zip(wanted, found, strict=True)
            ):
                free = [n for w, n in zip(wanted, found, strict=True) if w is None]
                return target.format(*free) + tail
    return None
