"""`llvq quantize`: a checkpoint becomes an NVFP4 program."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llvq.cli import calibrate_options, options
from llvq.cli.budget import within_budget
from llvq.cli.options import COMPILER

if TYPE_CHECKING:
    from llvq.checkpoints.model import VideoModel
    from llvq.compiler import Compiled
    from llvq.passes import Options
    from llvq.recipe import Recipe


def quantize(
    model: options.ModelPath,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Default: STEM.nvfp4 in this folder.")
    ] = None,
    recipe: options.RecipeName = "longlive2-nvfp4",
    vae: options.VaePath = None,
    text_encoder: options.TextEncoderPath = None,
    tokenizer: options.TokenizerPath = None,
    num_heads: options.NumHeads = None,
    use_ema: options.UseEma = False,
    layout: options.Layout = None,
    lora: options.LoraFiles = None,
    lora_alpha: options.LoraAlphas = None,
    height: options.Height = None,
    width: options.Width = None,
    force: options.Force = False,
    json: options.Json = False,
    budget: calibrate_options.Budget = None,
    calibrate: calibrate_options.Calibrate = None,
    calibrate_prompts: calibrate_options.Prompts = None,
    calibrate_chunks: calibrate_options.Chunks = None,
    calibrate_size: calibrate_options.Size = None,
    calibrate_seed: calibrate_options.Seed = None,
    calibrate_device: calibrate_options.Device = None,
    work: calibrate_options.WorkFolder = None,
    calibration: calibrate_options.Facts = None,
    print_ir_after: Annotated[
        list[str] | None,
        typer.Option(metavar="PASS", help="Or `all`. Repeatable.", rich_help_panel=COMPILER),
    ] = None,
    dump: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the IR after each pass.", rich_help_panel=COMPILER),
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(metavar="PASS", help="Write no program.", rich_help_panel=COMPILER),
    ] = None,
    disable: options.Disable = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Make only the first N rewrites.", rich_help_panel=COMPILER
        ),
    ] = None,
) -> None:
    """Quantize a checkpoint: NVFP4 weights, and the graphs that read them.

    VAE, text encoder and tokenizer are looked for beside MODEL under their published names, or in
    the folder of a diffusers pipeline. Weights are streamed: 10 GB of them need little memory.

    \b
      llvq quantize model_bf16.pt
      llvq quantize model_bf16.pt -o small.nvfp4 --height 480 --width 832
      llvq quantize model_bf16.pt --recipe mine.toml --vae vae/Wan2.2_VAE.pth
      llvq quantize stage1/model.pt --use-ema --lora dmd/model.pt --lora-alpha 128
      llvq quantize model_bf16.pt --calibrate modelopt:awq_lite --calibrate-prompts prompts.txt
      llvq quantize model_bf16.pt --budget 4.7bits
      llvq quantize model_bf16.pt --stop-after fuse-linear --print-ir-after fuse-linear
    """
    from llvq.api import default_program
    from llvq.cli.table import note
    from llvq.passes import Options
    from llvq.recipe import load_recipe

    path = out if out is not None else default_program(model)
    chosen = load_recipe(recipe)
    calibrating = calibrate_options.chosen(
        calibrate,
        calibration,
        work,
        path,
        budget=budget,
        prompts=calibrate_prompts,
        chunks=calibrate_chunks,
        size=calibrate_size,
        seed=calibrate_seed,
        device=calibrate_device,
    )
    debugging = Options(
        print_ir_after=tuple(print_ir_after or ()),
        dump=dump,
        stop_after=stop_after,
        disable=tuple(disable or ()),
        limit=limit,
        show=note if json else print,
    )
    _check_typed(debugging, path, force=force)
    opened = options.open_video_model(
        model,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        num_heads=num_heads,
        use_ema=use_ema,
        size=options.video_size(height, width),
        layout=layout,
        lora=lora,
        lora_alpha=lora_alpha,
    )
    chosen = within_budget(opened, chosen, calibrating, path, force=force)
    opened, made = calibrate_options.calibrated(opened, chosen, calibrating, force=force)
    compiled = _compile(opened, chosen, debugging)
    staged = compiled.reports[-1].level == "staged"
    written = _write(compiled, opened, path, made, force=force) if staged else None
    _show(compiled, opened, path, written, as_json=json)


def _compile(opened: VideoModel, recipe: Recipe, debugging: Options) -> Compiled:
    from llvq.cli.table import stderr
    from llvq.compiler import compile_model

    with stderr().status("compiling"):
        return compile_model(
            opened.config, recipe, calibration=opened.calibration, options=debugging
        )


def _check_typed(debugging: Options, path: Path, *, force: bool) -> None:
    """Names of passes and places to write to, before anything is opened."""
    from llvq.cli.output import check_output
    from llvq.passes import PIPELINE
    from llvq.passes.manager import check_names

    check_names(PIPELINE, debugging)
    if debugging.stop_after is None:
        check_output(path, force=force, kind="box")
    if debugging.dump is not None:
        check_output(debugging.dump, force=True)


def _write(
    compiled: Compiled,
    opened: VideoModel,
    path: Path,
    calibration: dict[str, Any] | None,
    *,
    force: bool,
) -> str:
    """Stream the weights behind a progress bar; gives the id of the program."""
    from llvq.box import write_program
    from llvq.cli.table import byte_progress

    with byte_progress() as bar:
        task = bar.add_task("weights", total=None)
        return write_program(
            compiled,
            opened.source,
            path,
            tokenizer=opened.bundle.tokenizer,
            calibration=calibration,
            loras=[lora.record() for lora in opened.loras],
            overwrite=force,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _show(
    compiled: Compiled, opened: VideoModel, path: Path, written: str | None, *, as_json: bool
) -> None:
    from llvq.cli.pass_table import print_pass_table
    from llvq.cli.table import note, print_json
    from llvq.cli.weight_summary import print_summary, summarize

    rows = [report.to_dict() for report in compiled.reports]
    summary = summarize(compiled, opened.source)
    if as_json:
        document: dict[str, Any] = {
            "program": str(path) if written else None,
            "id": written,
            "notes": list(opened.notes),
            "recipe": compiled.recipe.name,
            "passes": rows,
            "rewrites": len(compiled.rewrites),
            "weights": summary.to_dict(),
        }
        print_json(document)
    else:
        print_pass_table(rows)
        print_summary(summary)
    if written is None:
        note(f"stopped after {rows[-1]['name']}, before level staged: no program was written")
    elif not as_json:
        print(f"{path}   id {written[:16]}\nnext: llvq export {shlex.quote(str(path))}")
