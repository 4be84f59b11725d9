"""`llvq compare`: what 4 bits did to a model, in structure, bytes, layers and a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llvq.cli import options

if TYPE_CHECKING:
    from llvq.quality.comparison import Comparison


def compare(
    model: options.ModelPath,
    program: Annotated[
        Path, typer.Argument(help="What `llvq quantize` or `llvq export` made of MODEL.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="One per shot. Repeatable.")
    ] = None,
    chunks: Annotated[int, typer.Option(min=1, max=10_000, help="Length of the video.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the noise, for both sides.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps. Default: as trained.")
    ] = None,
    frames: Annotated[
        bool,
        typer.Option(
            "--frames", help="Judge the video: noise floor, another seed, VMAF (runs BF16 3 times)."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Where the videos run: cpu, cuda.")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Write report.html and report.json."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
    vae: options.VaePath = None,
    text_encoder: options.TextEncoderPath = None,
    num_heads: options.NumHeads = None,
    use_ema: options.UseEma = False,
    layout: options.Layout = None,
    lora: options.LoraFiles = None,
    lora_alpha: options.LoraAlphas = None,
) -> None:
    """Compare a quantized program with its checkpoint, which is compiled again as BF16.

    Prints graphs before and after, bytes, the error of every layer on the same inputs, and the
    error of every chunk of a video, from its own history and from the BF16 history.

    \b
      llvq compare model_bf16.pt model_bf16.nvfp4
      llvq compare model_bf16.pt model_bf16.nvfp4 --frames -o report
      llvq compare model_bf16.pt model.llvq --chunks 8 --prompt "a red kite" -o report
    """
    from llvq.cli.output import check_output
    from llvq.cli.table import note, print_json, task_bars
    from llvq.quality.compare import Request
    from llvq.quality.compare import compare as compare_programs
    from llvq.quality.report import write_report

    if out is not None:
        check_output(out, force=force)
    request = Request(tuple(prompt or ()), chunks, seed, steps, device, frames)
    with task_bars() as progress:
        found = compare_programs(
            model,
            program,
            request,
            progress=progress,
            vae=vae,
            text_encoder=text_encoder,
            num_heads=num_heads,
            use_ema=use_ema,
            layout=layout,
            lora=lora or (),
            lora_alpha=lora_alpha or (),
        )
    if json:
        print_json(found.to_dict())
    else:
        _print(found)
    if out is not None:
        page, _ = write_report(found, out)
        note(f"report: {page}")


def _print(found: Comparison) -> None:
    from llvq.cli.table import print_fields, print_table, stdout
    from llvq.quality.tables import all_tables, flat

    print_fields(flat(found.measured))
    for text in found.notes:
        stdout().print(f"note: {text}", markup=False)
    for table in all_tables(found):
        stdout().print()
        left = 3 if table.columns[0] in ("pass", "what") else 1
        print_table(table.title, table.columns, table.rows, left=left)
        if table.caption:
            stdout().print(table.caption, markup=False, soft_wrap=True)
