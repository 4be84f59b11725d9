"""`llvq export`: a program becomes a box for one target."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llvq.cli import options

if TYPE_CHECKING:
    from llvq.artifact import Box


def export(
    program: Annotated[Path, typer.Argument(help="A program made by `llvq quantize`.")],
    target: Annotated[str, typer.Option(help="The machine kind it will run on.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Default: STEM.llvq in this folder.")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Export a program for a target: a box that `llvq run` executes and `llvq verify` checks.

    A target is explicit and never falls back: a box runs as it says, or refuses.

    \b
      llvq export model_bf16.nvfp4
      llvq export model_bf16.nvfp4 --target cpu -o boxes/model.llvq
    """
    from llvq.backends.base import find_target
    from llvq.box import export_box
    from llvq.cli.output import check_output
    from llvq.cli.table import note, print_json, stderr
    from llvq.runtime.load import open_checked

    chosen = find_target(target)
    path = out if out is not None else Path(f"{program.resolve().stem}.llvq")
    check_output(path, force=force, kind="box")
    with stderr().status("checking the program"):
        opened = open_checked(program, kinds=("program",))
    with stderr().status("recording check vectors"):
        box_id, checks = export_box(opened, chosen, path, overwrite=force)
    for stage, reason in checks.skipped.items():
        note(f"note: {stage} has no check vectors: {reason}")
    if json:
        fields = {"box": str(path), "id": box_id, "target": target, "numerics": chosen.numerics}
        print_json({**fields, "checks": sorted(checks.vectors), "unchecked": dict(checks.skipped)})
    else:
        print(f"{path}   id {box_id[:16]}   target {target}, numerics {chosen.numerics}")
        print(next_step(opened, path))


def next_step(program: Box, path: Path) -> str:
    """What to type with a box that has no tokenizer, or no decoder, differs."""
    has_tokenizer = "tokenizer/tokenizer.json" in program.manifest["files"]
    what = '--prompt "a red kite over the sea"' if has_tokenizer else "--embeds FILE"
    decoded = "" if "decode" in program.manifest["stages"] else " --latents-only"
    return f"next: llvq run {shlex.quote(str(path))} {what}{decoded}"
