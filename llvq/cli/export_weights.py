"""`llvq export --format modelopt` and others: the denoiser's weights as other tools read them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llvq.cli.export import Request

SUFFIXES = {"folder": "", "safetensors": ".safetensors", "torch": ".pt"}


def export_weights(request: Request) -> None:
    """Write them behind a progress bar, and say what was kept apart and what to do next."""
    from llvq.cli.output import check_output
    from llvq.cli.table import byte_progress, note, print_json, stderr
    from llvq.runtime.load import open_checked
    from llvq.weight_export.export import export_weights as write
    from llvq.weight_export.formats import TOOLS

    tool = TOOLS[request.format]
    stem, suffix = request.program.resolve().stem, SUFFIXES[tool.container]
    path = request.out or Path(f"{stem}.{request.format}{suffix}")
    check_output(path, force=request.force, kind="file" if suffix else "folder")
    with stderr().status("checking the program"):
        opened = open_checked(request.program, kinds=("program",))
    with byte_progress() as bar:
        task = bar.add_task("weights", total=None)
        exported = write(
            opened,
            request.format,
            path,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for text in exported.notes:
        note(f"note: {text}")
    next_step = tool.next.format(path=shlex.quote(str(path)))
    if request.json:
        print_json(
            {
                "path": str(path),
                "format": request.format,
                "packed": list(exported.layers),
                "plain": list(exported.plain),
                "notes": list(exported.notes),
                "next": next_step,
            }
        )
    else:
        count = f"{len(exported.layers)} linears packed, {len(exported.plain)} in bf16"
        print(f"{path}   {tool.layout.title}: {count}\nnext: {next_step}")
