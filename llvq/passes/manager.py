"""The pass manager: runs passes in order, times them, checks the level, keeps the books."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llvq.calibration import Calibration
from llvq.errors import OutputError
from llvq.passes.books import Book, refuse_misses
from llvq.passes.rules import Context, Rewrite
from llvq.passes.spec import verify
from llvq.program import Level, Program
from llvq.recipe import Recipe, RecipeError, unknown

PassFunction = Callable[[Program, Context], list[Book]]


@dataclass(frozen=True)
class Pass:
    """A pass: the function, the level its result is legal at, and what it does to numbers.

    `optional` passes only make programs faster; the others make a level and cannot be left out.
    `whole` passes ignore the rewrite limit: what follows needs every one of their rewrites.
    """

    function: PassFunction
    reaches: Level
    numerics: Literal["exact", "rounds"]
    optional: bool = False
    whole: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__.replace("_", "-")

    @property
    def summary(self) -> str:
        """First sentence of the module's docstring, without the name."""
        module = __import__(self.function.__module__, fromlist=["_"])
        first = (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        return first.removeprefix(f"{self.name}: ")


@dataclass(frozen=True)
class Report:
    """One line of the pass table. `ops` has the calls of each op before and after, if changed."""

    name: str
    level: str
    numerics: str
    books: tuple[Book, ...]
    nodes: tuple[int, int]
    milliseconds: float
    ops: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def total(self, what: str) -> int:
        counts = {
            "sites": sum(b.sites for b in self.books),
            "hits": sum(b.hits for b in self.books),
            "excluded": sum(b.excluded.total() for b in self.books),
            "misses": sum(len(b.misses) + b.tolerated.total() for b in self.books),
        }
        return counts[what]

    def to_dict(self, *, timing: bool = True) -> dict[str, Any]:
        row = {
            "name": self.name,
            "level": self.level,
            "numerics": self.numerics,
            "nodes": list(self.nodes),
            "ops": {op: list(counts) for op, counts in self.ops.items()},
            "books": [book.to_dict() for book in self.books],
        }
        return row | ({"ms": round(self.milliseconds, 1)} if timing else {})


@dataclass(frozen=True)
class Options:
    """How to run a pipeline. Names of passes are checked against it.

    `limit` is how many rewrites are made, counted over all passes that are not `whole`. A limited
    program still reaches the last level: what was not rewritten runs as it was captured.
    """

    print_ir_after: tuple[str, ...] = ()
    dump: Path | None = None
    stop_after: str | None = None
    disable: tuple[str, ...] = ()
    limit: int | None = None
    show: Callable[[str], None] = print


@dataclass
class Result:
    """What running a pipeline gave: the reports, and the rewrites that a limit counts."""

    reports: list[Report] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)


def run(
    program: Program,
    recipe: Recipe,
    pipeline: Sequence[Pass],
    options: Options | None = None,
    *,
    calibration: Calibration | None = None,
) -> Result:
    """Run the passes on `program`, in place. Raises MissError, SpecError, RecipeError."""
    options = options or Options()
    check_names(pipeline, options)
    ctx = Context(recipe, options.limit, calibration=calibration or {})
    result = Result()
    verify(program)
    for index, step in enumerate(pipeline, start=1):
        if step.name in options.disable:
            continue
        result.reports.append(_run_one(program, ctx, step))
        _emit(program, index, step, options)
        if step.name == options.stop_after:
            break
    result.rewrites = ctx.log
    program.drop_unread_weights()
    return result


def check_names(pipeline: Sequence[Pass], options: Options) -> None:
    """Every pass that an option names must exist, and only optional ones can be disabled."""
    names = [step.name for step in pipeline]
    asked = [*options.disable, *options.print_ir_after, *filter(None, [options.stop_after])]
    for name in asked:
        if name not in names and name != "all":
            raise unknown("pass", name, names)
    for step in pipeline:
        if step.name in options.disable and not step.optional:
            raise RecipeError(
                f"{step.name} cannot be disabled",
                because=f"it makes level {step.reaches.name.lower()}, which later passes need",
                fix=f"use --stop-after {step.name}, or disable one of "
                f"{', '.join(s.name for s in pipeline if s.optional)}",
            )


def check_tolerances(pipeline: Sequence[Pass], recipe: Recipe) -> None:
    """A tolerance must name a pass that can use it."""
    names = [step.name for step in pipeline if not step.whole]
    for name in recipe.allow_miss:
        if name not in names:
            raise unknown("pass that tolerates misses", name, names)


def _run_one(program: Program, ctx: Context, step: Pass) -> Report:
    before = measure(program)
    ctx.pass_name = step.name
    books = step.function(program, Context(ctx.recipe) if step.whole else ctx)
    if step.whole or not ctx.exhausted:
        refuse_misses(step.name, books, tolerable=not step.whole)
    program.level = step.reaches
    verify(program, limited=ctx.exhausted)
    return report(step, books, before, measure(program))


class Measure(NamedTuple):
    """What a report compares: nodes, calls of each op, and the time in seconds."""

    nodes: int
    calls: Counter[str]
    seconds: float


def measure(program: Program) -> Measure:
    nodes = sum(len(gm.graph.nodes) for gm in program.graphs.values())
    return Measure(nodes, program.op_counts(), time.perf_counter())


def report(step: Pass, books: Sequence[Book], before: Measure, after: Measure) -> Report:
    """The line of the pass table for what a pass did between two measures."""
    spent = (after.seconds - before.seconds) * 1e3
    level, nodes = step.reaches.name.lower(), (before.nodes, after.nodes)
    ops = changes(before.calls, after.calls)
    return Report(step.name, level, step.numerics, tuple(books), nodes, spent, ops)


def changes(before: Counter[str], after: Counter[str]) -> dict[str, tuple[int, int]]:
    """Counts before and after, of what changed."""
    ops = sorted(before.keys() | after.keys())
    return {op: (before[op], after[op]) for op in ops if before[op] != after[op]}


def _emit(program: Program, index: int, step: Pass, options: Options) -> None:
    if {"all", step.name} & set(options.print_ir_after):
        options.show(f"// IR after {step.name}\n{program.text()}")
    if options.dump is not None:
        _write(options.dump, f"{index:02d}-{step.name}.txt", program.text() + "\n")


def _write(folder: Path, name: str, text: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{name} could not be written",
            where=str(folder),
            because=error.strerror or str(error),
            fix="choose another folder with --dump",
        ) from error
