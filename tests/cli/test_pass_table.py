"""The pass table of a hand-made run."""

from __future__ import annotations

from collections import Counter

import pytest

from llvq.cli.pass_table import COLUMNS, print_pass_table
from llvq.passes import Report
from llvq.passes.books import Book, MissRecord

MISS = MissRecord("it has 2 users", "add_3", "blocks.0", "dit.py:88")
REPORT = Report(
    "fuse-linear",
    "fused",
    "exact",
    books=(
        Book("qkv", sites=9, hits=4, excluded=Counter({"*head*": 2}), misses=[MISS], stopped=2),
        Book("kv", sites=3, hits=1, tolerated=Counter({"blocks.1": 2})),
    ),
    nodes=(120, 90),
    milliseconds=12.34,
)
PLAIN = Report("canonicalize", "canonical", "exact", (Book("dtypes"),), (90, 90), 0.5)


def shown(capsys: pytest.CaptureFixture[str], *rows: dict[str, object]) -> list[list[str]]:
    print_pass_table(rows)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_books_of_a_pass_are_summed(capsys: pytest.CaptureFixture[str]) -> None:
    title, head, first, second = shown(capsys, REPORT.to_dict(), PLAIN.to_dict())
    assert (title, head) == (["passes"], list(COLUMNS))
    counts = ["5", "2", "3", "2"]  # a miss that the recipe tolerates is still a miss
    assert first == ["1", "fuse-linear", "fused", "exact", *counts, "120", "->", "90", "12.3"]
    assert second[:8] == ["2", "canonicalize", "canonical", "exact", "0", "-", "-", "-"]


def test_a_manifest_has_no_times(capsys: pytest.CaptureFixture[str]) -> None:
    *_, row = shown(capsys, REPORT.to_dict(timing=False))
    assert row[-1] == "-"
