"""Options that several commands share: which model, which recipe, which passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llvq.errors import RecipeError

if TYPE_CHECKING:
    from llvq.checkpoints.model import VideoModel

MODEL = "Files of the model"
SIZE = "Size of the video"
MAX_PIXELS = 8192
COMPILER = "Looking into the compiler"

ModelPath = Annotated[
    Path, typer.Argument(help="The denoiser: a checkpoint file, or a folder of shards.")
]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="A builtin recipe (longlive2-nvfp4, bf16) or a .toml file.")
]
VaePath = Annotated[
    Path | None,
    typer.Option("--vae", help="Default: looked for beside MODEL.", rich_help_panel=MODEL),
]
TextEncoderPath = Annotated[
    Path | None,
    typer.Option("--text-encoder", help="Default: as for --vae.", rich_help_panel=MODEL),
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="A tokenizer.json. Default: as --vae.", rich_help_panel=MODEL),
]
NumHeads = Annotated[
    int | None,
    typer.Option(
        "--num-heads", help="Attention heads, which a file may not say.", rich_help_panel=MODEL
    ),
]
UseEma = Annotated[
    bool, typer.Option("--use-ema", help="Take the EMA weights.", rich_help_panel=MODEL)
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="Who packed it, if the file leaves it open.",
        rich_help_panel=MODEL,
    ),
]
LoraFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--lora",
        metavar="FILE",
        help="Merge a LoRA into MODEL first. Repeatable.",
        rich_help_panel=MODEL,
    ),
]
LoraAlphas = Annotated[
    list[float] | None,
    typer.Option(
        "--lora-alpha",
        metavar="ALPHA",
        help="Its alpha, one per --lora. Default: what it says, or its rank.",
        rich_help_panel=MODEL,
    ),
]
Height = Annotated[
    int | None,
    typer.Option(
        "--height", help="Pixels. Default: config.json, or 704 (Wan2.1: 480).", rich_help_panel=SIZE
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        "--width", help="Pixels. Default: config.json, or 1280 (Wan2.1: 832).", rich_help_panel=SIZE
    ),
]
Disable = Annotated[
    list[str] | None,
    typer.Option(
        "--disable", metavar="PASS", help="Leave an optional pass out.", rich_help_panel=COMPILER
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of tables.")]


def video_size(height: int | None, width: int | None) -> tuple[int, int] | None:
    """Both or none."""
    if height is None and width is None:
        return None
    if height is None or width is None:
        given, missing = ("width", "height") if height is None else ("height", "width")
        raise RecipeError(f"--{given} was given alone", fix=f"add --{missing}")
    if min(height, width) < 1:
        raise RecipeError(f"{height}x{width} is not a size", fix="use --height 704 --width 1280")
    if max(height, width) > MAX_PIXELS:
        raise RecipeError(
            f"{height}x{width} is larger than any video",
            because=f"llvq takes up to {MAX_PIXELS} pixels a side",
            fix="use --height 704 --width 1280",
        )
    return height, width


def open_video_model(
    model: Path,
    *,
    vae: Path | None,
    text_encoder: Path | None,
    tokenizer: Path | None,
    num_heads: int | None,
    use_ema: bool,
    size: tuple[int, int] | None,
    layout: str | None = None,
    lora: list[Path] | None = None,
    lora_alpha: list[float] | None = None,
) -> VideoModel:
    """Open a checkpoint set and tell the user what was found, and every guess."""
    from llvq.checkpoints.model import open_model
    from llvq.cli.table import note

    opened = open_model(
        model,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        num_heads=num_heads,
        use_ema=use_ema,
        size=size,
        layout=layout,
        lora=lora or (),
        lora_alpha=lora_alpha or (),
    )
    bundle, config = opened.bundle, opened.config
    parts = ("dit", "vae", "text_encoder", "tokenizer")
    for part in parts:
        path = getattr(bundle, part)
        note(f"{part.replace('_', ' '):<13} {path if path else '-'}")
    height, width = config.pixel_hw
    note(f"{'video':<13} {height}x{width}, {config.stream.fps} fps")
    for text in opened.notes:
        note(text if text.startswith("recognised: ") else f"note: {text}")
    return opened
