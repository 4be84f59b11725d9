"""`llvq export`: a program becomes a box for one target, or what another tool reads."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llvq.cli import options
from llvq.cli.export_onnx import export_onnx
from llvq.cli.export_weights import export_weights
from llvq.errors import RecipeError

if TYPE_CHECKING:
    from llvq.artifact import Box


@dataclass(frozen=True)
class Request:
    """What was typed. An option that was not is None."""

    program: Path
    out: Path | None
    force: bool
    json: bool
    target: str | None
    numerics: str | None
    dialect: str | None
    no_text_encoder: bool | None
    format: str


def export_box(request: Request) -> None:
    """Write a box for a target, with its kernels, and check vectors of this machine."""
    from llvq import box
    from llvq.backends.base import find_target
    from llvq.cli.output import check_output
    from llvq.cli.table import note, print_json, stderr, task_bars
    from llvq.runtime.load import open_checked

    chosen = find_target(request.target or "cpu", request.numerics)
    path = request.out or Path(f"{request.program.resolve().stem}.llvq")
    check_output(path, force=request.force, kind="box")
    with stderr().status("checking the program"):
        opened = open_checked(request.program, kinds=("program",))
    whole = not request.no_text_encoder
    with task_bars() as tell:
        box_id, checks = box.export_box(
            opened,
            chosen,
            path,
            text_encoder=whole,
            overwrite=request.force,
            progress=lambda done, of: tell(f"kernels for {chosen.name}", done, of),
        )
    for stage, reason in checks.skipped.items():
        note(f"note: {stage} has no check vectors: {reason}")
    if request.json:
        fields = {"box": str(path), "id": box_id}
        fields |= {"target": chosen.name, "numerics": chosen.numerics}
        print_json({**fields, "checks": sorted(checks.vectors), "unchecked": dict(checks.skipped)})
    else:
        print(f"{path}   id {box_id[:16]}   target {chosen.name}, numerics {chosen.numerics}")
        print(next_step(opened, path, text_encoder=whole))


@dataclass(frozen=True)
class Format:
    """Something a program can be exported as; `takes` are the options that mean something to it."""

    export: Callable[[Request], None]
    takes: tuple[str, ...] = ()


FORMATS = {
    "box": Format(export_box, takes=("target", "numerics", "no_text_encoder")),
    "onnx": Format(export_onnx, takes=("dialect",)),
    "modelopt": Format(export_weights),
    "compressed-tensors": Format(export_weights),
    "comfyui": Format(export_weights),
    "lightx2v": Format(export_weights),
    "longlive-4o6": Format(export_weights),
}


def export(
    program: Annotated[Path, typer.Argument(help="A program made by `llvq quantize`.")],
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "box",
    target: Annotated[
        str | None, typer.Option(help="box: the machine kind it will run on. Default: cpu.")
    ] = None,
    numerics: Annotated[
        str | None, typer.Option(help="box: w4a8, w4a16, ... Default: the target's first.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="onnx: standard (default), trt or portable.")
    ] = None,
    no_text_encoder: Annotated[
        bool | None,
        typer.Option("--no-text-encoder", help="box: it runs prompts that `llvq encode` cached."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Default: named after PROGRAM, in this folder."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Export a program: a box that `llvq run` executes, or what another tool reads.

    A target is explicit and never falls back: a box runs as it says, or refuses. Kernels for a GPU
    are compiled here, whether there is one or not.

    \b
      llvq export model_bf16.nvfp4
      llvq export model_bf16.nvfp4 --target cpu -o boxes/model.llvq
      llvq export model_bf16.nvfp4 --target sm_90a --numerics w4a16
      llvq export model_bf16.nvfp4 --no-text-encoder -o small.llvq
      llvq export model_bf16.nvfp4 --format onnx --dialect trt
      llvq export model_bf16.nvfp4 --format comfyui -o longlive_nvfp4.safetensors
    """
    if format not in FORMATS:
        from llvq.recipe import unknown

        raise unknown("format", format, list(FORMATS))
    request = Request(program, out, force, json, target, numerics, dialect, no_text_encoder, format)
    check_options(request, format)
    FORMATS[format].export(request)


def check_options(request: Request, format: str) -> None:
    """Refuse an option that the format would ignore. Raises RecipeError."""
    for option in ("target", "numerics", "dialect", "no_text_encoder"):
        if getattr(request, option) is not None and option not in FORMATS[format].takes:
            right = [name for name, entry in FORMATS.items() if option in entry.takes]
            typed = f"--{option.replace('_', '-')}"
            raise RecipeError(
                f"{typed} means nothing to --format {format}",
                because=f"it is an option of --format {', '.join(right)}",
                fix=f"leave {typed} out, or add --format {right[0]}",
            )


def next_step(program: Box, path: Path, *, text_encoder: bool = True) -> str:
    """What to type with a box that has no tokenizer, text encoder or decoder differs."""
    has_tokenizer = "tokenizer/tokenizer.json" in program.manifest["files"]
    what = '--prompt "a red kite over the sea"' if has_tokenizer else "--embeds FILE"
    what += "" if text_encoder else " --prompt-cache DIR"
    decoded = "" if "decode" in program.manifest["stages"] else " --latents-only"
    return f"next: llvq run {shlex.quote(str(path))} {what}{decoded}"
