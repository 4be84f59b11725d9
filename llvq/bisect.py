"""Find the first rewrite that breaks a program: binary search over the rewrite limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvq.compiler import Compiled
from llvq.errors import MissError, RecipeError
from llvq.passes import Rewrite

CompileAt = Callable[[int | None], Compiled]
IsGood = Callable[[Compiled], bool]
Told = Callable[[int, str], None]
UNBUILDABLE = "cannot be built"


@dataclass(frozen=True)
class Culprit:
    """Rewrite `number` (from 1) of `total`: with it the program is bad, without it good.

    `buildable` is False if the limit just below cannot be compiled: then the culprit may also be
    one of the rewrites before, which stand or fall together.
    """

    number: int
    total: int
    rewrite: Rewrite
    buildable: bool


def bisect(compile_at: CompileAt, is_good: IsGood, told: Told | None = None) -> Culprit:
    """Search the limits of `compile_at`, with `is_good` as the oracle.

    `told` hears (limit, verdict) of every trial. A limit that leaves too little rewritten for the
    passes after it cannot show the error, and counts as good. Raises RecipeError if the program is
    good with all rewrites, or bad with none.
    """
    whole = compile_at(None)
    total = len(whole.rewrites)
    if _judge(whole, is_good, total, told) == "good":
        raise RecipeError(
            "there is nothing to bisect",
            because=f"the command succeeds with all {total} rewrites",
            fix="give a command that fails for this program (any exit code but 0)",
        )
    if _try(compile_at, is_good, 0, told) == "bad":
        raise RecipeError(
            "no rewrite that can be left out is to blame",
            because=f"the command also fails with none of the {total} rewrites",
            fix="check the command; else look at the passes that a limit does not cut: llvq passes",
        )
    good, bad, below = 0, total, "good"
    while bad - good > 1:
        middle = (good + bad) // 2
        verdict = _try(compile_at, is_good, middle, told)
        if verdict == "bad":
            bad = middle
        else:
            good, below = middle, verdict
    return Culprit(bad, total, whole.rewrites[bad - 1], below != UNBUILDABLE)


def _try(compile_at: CompileAt, is_good: IsGood, limit: int, told: Told | None) -> str:
    try:
        compiled = compile_at(limit)
    except MissError:
        if told is not None:
            told(limit, UNBUILDABLE)
        return UNBUILDABLE
    return _judge(compiled, is_good, limit, told)


def _judge(compiled: Compiled, is_good: IsGood, limit: int, told: Told | None) -> str:
    verdict = "good" if is_good(compiled) else "bad"
    if told is not None:
        told(limit, verdict)
    return verdict
