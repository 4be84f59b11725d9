"""The pass table: one line per pass, its books on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("#", "pass", "level", "numerics", "hits", "excl", "miss", "stopped", "nodes", "ms")


def print_pass_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """`rows` are `Report.to_dict()`, or the `passes` of a manifest, which have no times."""
    from llvq.cli.table import print_table

    print_table("passes", COLUMNS, [_row(i, row) for i, row in enumerate(rows, 1)], left=4)


def _row(number: int, row: Mapping[str, Any]) -> tuple[Any, ...]:
    books = row["books"]
    before, after = row["nodes"]
    missed = sum(len(b["misses"]) + sum(b["tolerated"].values()) for b in books)
    return (
        number,
        row["name"],
        row["level"],
        row["numerics"],
        sum(book["hits"] for book in books),
        sum(sum(book["excluded"].values()) for book in books) or None,
        missed or None,
        sum(book["stopped"] for book in books) or None,
        f"{before} -> {after}",
        row.get("ms"),
    )
