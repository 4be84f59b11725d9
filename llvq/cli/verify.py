"""`llvq verify`: is this box whole, and does this machine compute what its exporter did?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def verify(
    box: Annotated[Path, typer.Argument(help="A box made by `llvq export`.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check every byte of a box, then replay its check vectors on this machine.

    Example: llvq verify model.llvq
    """
    from llvq.checks import replay
    from llvq.runtime.device import TARGET_DEVICES
    from llvq.runtime.load import executable, open_runnable

    opened = open_runnable(box)
    device = TARGET_DEVICES[opened.manifest["target"]]
    results = replay(executable(opened, device), opened)
    failed = [result for result in results if not result.passed]
    if json:
        _print_json(opened.id, opened.manifest, results)
    else:
        _print_table(str(box), opened.id, opened.manifest, results)
    if failed:
        raise typer.Exit(code=4)


def _print_json(box_id: str, manifest: Any, results: list[Any]) -> None:
    from llvq.cli.table import print_json

    rows = [{**vars(result), "passed": result.passed} for result in results]
    print_json({"id": box_id, "checks": rows, "unchecked": manifest["unchecked"]})


def _print_table(path: str, box_id: str, manifest: Any, results: list[Any]) -> None:
    from llvq.cli.table import print_table

    print(f"{path}: {len(manifest['files'])} files, every byte as written")
    print(f"id {box_id}")
    columns = ("stage", "verdict", "outputs", "same bytes", "worst relative L2")
    stages = dict.fromkeys(result.stage for result in results)
    rows = [_row(stage, [r for r in results if r.stage == stage]) for stage in stages]
    unchecked = manifest["unchecked"].items()
    rows += [(stage, f"not checked: {reason}", None, None, None) for stage, reason in unchecked]
    print_table("check vectors, replayed here", columns, rows, left=2)


def _row(stage: str, results: list[Any]) -> tuple[Any, ...]:
    worst = max(results, key=lambda result: result.error)
    verdict = "ok" if worst.passed else f"differs: {worst.output}"
    exact = sum(result.exact for result in results)
    return stage, verdict, len(results), exact, f"{worst.error:.2e}"
