"""`llvq quantize --budget`: measure which linears are worth their bits, and write the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llvq.errors import OutputError

if TYPE_CHECKING:
    from llvq.checkpoints.model import VideoModel
    from llvq.cli.calibrate_options import Chosen
    from llvq.recipe import Recipe


def recipe_beside(out: Path) -> Path:
    """Where the recipe goes that a budget has chosen."""
    return out.with_name(f"{out.stem}.toml")


def within_budget(
    opened: VideoModel, recipe: Recipe, what: Chosen, out: Path, *, force: bool
) -> Recipe:
    """The recipe as it is; or, with a budget, one that keeps more, which is written beside `out`.

    Raises OutputError, and what measuring raises.
    """
    if what.budget is None or what.videos is None:
        return recipe
    from llvq.calibrate import measure
    from llvq.cli.output import check_output
    from llvq.cli.table import note, task_bars

    path = recipe_beside(out)
    check_output(path, force=force, kind="file")
    with task_bars() as progress:
        chosen, spending = measure.within_budget(
            opened, recipe, what.videos, what.budget, progress=progress
        )
    _write(chosen, path)
    kept = ", ".join(layer.layer for layer in spending.kept) or "nothing more"
    note(f"budget  {spending.bits:.3g} bits a weight; what is kept carried {spending.share:.0%} "
         f"of the error: {kept}")  # fmt: skip
    note(f"recipe  {path}")
    return chosen


def _write(recipe: Recipe, path: Path) -> None:
    from llvq.recipe_toml import to_toml

    try:
        path.write_text(to_toml(recipe), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            "cannot write the recipe that the budget has chosen",
            where=str(path),
            because=error.strerror or str(error),
            fix="free some space, or name another folder with -o",
        ) from error
