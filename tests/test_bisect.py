"""Bisect: finds the first bad rewrite, in few trials, and says when there is none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from llvq.bisect import UNBUILDABLE, bisect
from llvq.errors import MissError, RecipeError
from llvq.passes import Rewrite

TOTAL = 100


@dataclass(frozen=True)
class FakeCompiled:
    """Stands for a compiled model; all that bisect reads of it is the log."""

    rewrites: tuple[Rewrite, ...]


def compile_at(limit: int | None) -> FakeCompiled:
    count = TOTAL if limit is None else limit
    return FakeCompiled(
        tuple(Rewrite("p", "r", f"node_{i}", "m", "s") for i in range(1, count + 1))
    )


def needs_twenty(limit: int | None) -> FakeCompiled:
    if limit is not None and limit < 20:
        raise MissError("too little was raised")
    return compile_at(limit)


@pytest.mark.parametrize("bad", [1, 2, 50, 99, 100])
def test_the_first_bad_rewrite_is_found(bad: int) -> None:
    heard: list[tuple[int, str]] = []
    culprit = bisect(
        compile_at,  # type: ignore[arg-type]
        lambda compiled: len(compiled.rewrites) < bad,
        lambda limit, verdict: heard.append((limit, verdict)),
    )
    assert (culprit.number, culprit.total) == (bad, TOTAL)
    assert culprit.rewrite.node == f"node_{bad}"
    assert culprit.buildable
    assert heard[:2] == [(TOTAL, "bad"), (0, "good")] and len(heard) <= 9


def test_a_good_program_is_no_case() -> None:
    with pytest.raises(RecipeError, match="nothing to bisect"):
        bisect(compile_at, lambda _: True)  # type: ignore[arg-type]


def test_a_program_that_is_bad_from_the_start_blames_no_rewrite() -> None:
    with pytest.raises(RecipeError, match="no rewrite that can be left out"):
        bisect(compile_at, lambda _: False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "number", "sure"), [(5, 20, False), (20, 20, False), (21, 21, True)]
)
def test_limits_that_cannot_be_built_count_as_good(bad: int, number: int, sure: bool) -> None:
    verdicts: list[str] = []
    culprit = bisect(
        needs_twenty,  # type: ignore[arg-type]
        lambda compiled: len(compiled.rewrites) < bad,
        lambda _, verdict: verdicts.append(verdict),
    )
    assert (culprit.number, culprit.buildable) == (number, sure)
    assert UNBUILDABLE in verdicts
