"""Options of `llvq quantize` that calibrate: where facts about linears come from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llvq.errors import RecipeError

if TYPE_CHECKING:
    from llvq.calibrate.run import Request
    from llvq.calibrate.videos import Videos
    from llvq.checkpoints.model import VideoModel
    from llvq.recipe import Recipe

PANEL = "Calibration"
SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")

Calibrate = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="TOOL:CONFIG",
        help="modelopt:max, awq_lite, smoothquant, svdquant or mse.",
        rich_help_panel=PANEL,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="BITS",
        help="4.7bits: keep the linears in bf16 whose error moves the video most.",
        rich_help_panel=PANEL,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--calibrate-prompts",
        metavar="FILE",
        help="One per line and video, or safetensors with prompt_embeds. Default: four of ours.",
        rich_help_panel=PANEL,
    ),
]
Chunks = Annotated[
    int | None,
    typer.Option(
        "--calibrate-chunks", min=1, help="Length of each video. Default: 3.", rich_help_panel=PANEL
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--calibrate-size",
        metavar="HxW",
        help="Pixels of each video. Default: those of the program.",
        rich_help_panel=PANEL,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--calibrate-seed", help="Of the first video's noise. Default: 0.", rich_help_panel=PANEL
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--calibrate-device", help="Where they run: cpu, cuda. Default: cpu.", rich_help_panel=PANEL
    ),
]
WorkFolder = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="DIR",
        help="State to resume from, and the result. Default: OUT.calibration.",
        rich_help_panel=PANEL,
    ),
]
Facts = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="A calibration.safetensors made before.",
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True)
class Chosen:
    """What was typed: a run (`request`, in the folder `work`), a finished file, or neither; and a
    `budget` in bits per weight, to be spent by what `videos` show."""

    request: Request | None
    work: Path
    facts: Path | None
    budget: float | None = None
    videos: Videos | None = None


def chosen(
    calibrate: str | None,
    facts: Path | None,
    work: Path | None,
    out: Path,
    *,
    budget: str | None = None,
    size: str | None,
    **given: Any,
) -> Chosen:
    """Check what was typed before anything is opened; `given` are fields of `Request` or None.

    Raises RecipeError.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    typed = [f"--calibrate-{name}" for name in (*fields, *(["size"] if size else []))]
    typed += ["--work"] if work else []
    if calibrate is None and budget is None:
        if typed:
            raise RecipeError(
                f"{typed[0]} was given without --calibrate",
                because="it says how to calibrate, and nothing is calibrated",
                fix="add --calibrate modelopt:max, or --budget 4.7bits",
            )
        return Chosen(None, out, facts)
    if budget is not None:
        return _spending(budget, calibrate or work or facts, _pixels(size), fields, out)
    assert calibrate is not None
    if facts is not None:
        raise RecipeError(
            "--calibrate and --calibration were both given",
            because="one makes facts about linears, the other takes those made before",
            fix="leave one out",
        )
    from llvq.calibrate.configs import config_of
    from llvq.calibrate.run import Request

    config_of(calibrate)
    request = Request(calibrate, size=_pixels(size), **fields)
    return Chosen(request, work or Path(f"{out}.calibration"), None)


def _spending(
    budget: str, beside: object, size: tuple[int, int] | None, fields: dict[str, Any], out: Path
) -> Chosen:
    if beside is not None:
        raise RecipeError(
            "--budget is measured on a checkpoint as it is",
            because="a calibration changes what 4 bits of a linear cost",
            fix="first --budget alone; then --recipe, the file that it wrote, with the calibration",
        )
    from llvq.calibrate.budget import parse_budget
    from llvq.calibrate.videos import Videos

    bits = parse_budget(budget)
    return Chosen(None, out, None, budget=bits, videos=Videos(size=size, **fields))


def calibrated(
    opened: VideoModel, recipe: Recipe, what: Chosen, *, force: bool
) -> tuple[VideoModel, dict[str, Any] | None]:
    """The model with its facts, and how they were found: run, resumed, reused, or read."""
    from llvq.calibrate.facts_file import read_header, with_facts

    path = what.facts if what.request is None else _run(opened, recipe, what, force=force)
    return (opened, None) if path is None else (with_facts(opened, path), read_header(path))


def _run(opened: VideoModel, recipe: Recipe, what: Chosen, *, force: bool) -> Path:
    from llvq.calibrate.run import calibrate
    from llvq.cli.table import note, task_bars

    assert what.request is not None
    try:
        with task_bars() as progress:
            found = calibrate(
                opened, recipe, what.request, what.work, force=force, progress=progress
            )
    except (KeyboardInterrupt, SystemExit):
        if what.work.is_dir():
            note(f"what is finished is kept in {what.work}: the same command goes on from there")
        raise
    note(f"calibration  {found.path}{' (finished before, reused)' if found.reused else ''}")
    return found.path


def _pixels(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if match := SIZE.fullmatch(size):
        return int(match[1]), int(match[2])
    raise RecipeError(
        f"--calibrate-size {size} is not a size",
        because="it is written as height x width in pixels",
        fix="--calibrate-size 256x448",
    )
