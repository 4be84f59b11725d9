"""The whole of `llvq quantize` as one call."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from llvq.box import Progress, write_program
from llvq.calibrate.facts_file import read_header, with_facts
from llvq.calibrate.run import Request
from llvq.calibrate.run import calibrate as run_calibration
from llvq.checkpoints.model import open_model
from llvq.compiler import compile_model
from llvq.errors import RecipeError
from llvq.recipe import Recipe, load_recipe


def quantize_checkpoint(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    recipe: Recipe | str = "longlive2-nvfp4",
    vae: str | PathLike[str] | None = None,
    text_encoder: str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
    num_heads: int | None = None,
    use_ema: bool = False,
    layout: str | None = None,
    lora: Sequence[str | PathLike[str]] = (),
    lora_alpha: Sequence[float] = (),
    size: tuple[int, int] | None = None,
    calibrate: Request | None = None,
    calibration: str | PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Quantize a checkpoint and what lies beside it; gives the path of the program.

    `out`: by default `<stem>.nvfp4` in the current folder. `size`: (height, width) in pixels.
    `layout`: how linears that came packed lie in the file, where that leaves it open.
    `lora`: files whose LoRAs are merged in first; `lora_alpha`: what they do not say of themselves.
    `calibrate`: with what (state and result are kept in `<out>.calibration`); or `calibration`: the
    facts that were found before. `progress` is told (bytes written, bytes in all).

    Raises CheckpointError, RecipeError, MissError, SpecError, CaptureError, FormatError,
    OutputError; SessionError and TargetError if it calibrates.
    """
    chosen = load_recipe(recipe) if isinstance(recipe, str) else recipe
    if calibrate is not None and calibration is not None:
        raise RecipeError(
            "calibrate and calibration were both given",
            because="one makes facts about linears, the other takes those made before",
            fix="leave one out",
        )
    opened = open_model(
        model,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        num_heads=num_heads,
        use_ema=use_ema,
        layout=layout,
        size=size,
        lora=lora,
        lora_alpha=lora_alpha,
    )
    path = Path(out) if out is not None else default_program(Path(model))
    if calibrate is not None:
        work = Path(f"{path}.calibration")
        calibration = run_calibration(opened, chosen, calibrate, work, force=overwrite).path
    made = None
    if calibration is not None:
        opened, made = with_facts(opened, Path(calibration)), read_header(Path(calibration))
    compiled = compile_model(opened.config, chosen, calibration=opened.calibration)
    write_program(
        compiled,
        opened.source,
        path,
        tokenizer=opened.bundle.tokenizer,
        calibration=made,
        loras=[each.record() for each in opened.loras],
        overwrite=overwrite,
        progress=progress,
    )
    return path


def default_program(model: Path) -> Path:
    """Where the program of a checkpoint goes, if nobody says: the current folder."""
    whole = model.resolve()
    return Path(f"{whole.name if whole.is_dir() else whole.stem}.nvfp4")
