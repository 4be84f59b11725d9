"""What every command prints with: tables and JSON to stdout, progress and notes to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

# Beside a pipe there is no terminal to ask for its width, and a table must not lose columns.
PIPE_WIDTH = 140
LINES_APART = 10.0


def stdout() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """A line for people, beside the result."""
    stderr().print(text, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1
) -> None:
    """A table whose first `left` columns hold text; the others hold numbers, aligned right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    stdout().print(table, markup=False)


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one per line; those that are None are left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in fields:
        if value is not None:
            table.add_row(name, str(value))
    stdout().print(table, markup=False)


def human(nbytes: int) -> str:
    """`9.9 GiB`."""
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def byte_progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    return Progress(*columns, TimeRemainingColumn(), console=stderr(), transient=True)


def chunk_progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
    return Progress(SpinnerColumn(), *columns, console=stderr(), transient=True)


@contextmanager
def task_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each thing that is being done: (what, how much is done, how much).

    In a log, which has no place for bars, a line now and then.
    """
    if not stderr().is_terminal:
        yield _Lines()
        return
    with Progress(console=stderr(), transient=True) as bars:
        yield partial(_tell, bars, {})


def _tell(bars: Progress, tasks: dict[str, Any], what: str, done: int, total: int) -> None:
    if what not in tasks:
        tasks[what] = bars.add_task(what, total=total)
    bars.update(tasks[what], completed=done)


class _Lines:
    """Says where things are once LINES_APART seconds have passed since it did."""

    def __init__(self) -> None:
        self.said = monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if monotonic() - self.said >= LINES_APART:
            self.said = monotonic()
            note(f"{what}  {done} of {total}")
