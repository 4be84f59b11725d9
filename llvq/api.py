"""The whole of `llvq quantize` as one call."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from llvq.box import Progress, write_program
from llvq.checkpoints.model import open_model
from llvq.compiler import compile_model
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
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Quantize a checkpoint and what lies beside it; gives the path of the program.

    `out`: by default `<stem>.nvfp4` in the current folder. `size`: (height, width) in pixels.
    `progress` is told (bytes written, bytes in all). Raises CheckpointError, RecipeError,
    MissError, SpecError, CaptureError, FormatError, OutputError.
    """
    chosen = load_recipe(recipe) if isinstance(recipe, str) else recipe
    opened = open_model(
        model,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        num_heads=num_heads,
        use_ema=use_ema,
        size=size,
    )
    compiled = compile_model(opened.config, chosen, calibration=opened.calibration)
    path = Path(out) if out is not None else default_program(Path(model))
    write_program(
        compiled,
        opened.source,
        path,
        tokenizer=opened.bundle.tokenizer,
        overwrite=overwrite,
        progress=progress,
    )
    return path


def default_program(model: Path) -> Path:
    """Where the program of a checkpoint goes, if nobody says: the current folder."""
    return Path(f"{model.resolve().stem}.nvfp4")
