"""The trials of `llvq passes bisect`: compile under a limit, write, run somebody's command."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from llvq.backends.base import CPU
from llvq.bisect import Culprit
from llvq.box import export_box, write_program
from llvq.checkpoints.model import VideoModel
from llvq.cli.table import note, print_fields, print_json
from llvq.compiler import Compiled, compile_model
from llvq.errors import RecipeError
from llvq.passes import Options
from llvq.recipe import Recipe
from llvq.runtime.load import open_checked

PROGRAM, BOX = "{program}", "{box}"


@dataclass(frozen=True)
class Trials:
    """What a trial is made of. Raises RecipeError for a command that names no result."""

    model: VideoModel
    recipe: Recipe
    disable: tuple[str, ...]
    command: list[str]

    def __post_init__(self) -> None:
        if not any(PROGRAM in word or BOX in word for word in self.command):
            raise RecipeError(
                "the command names neither {program} nor {box}",
                where=" ".join(self.command),
                because="it would give the same answer for every trial",
                fix="llvq passes bisect MODEL -- python check.py {program}",
            )

    def compile_at(self, limit: int | None) -> Compiled:
        options = Options(disable=self.disable, limit=limit)
        return compile_model(
            self.model.config, self.recipe, calibration=self.model.calibration, options=options
        )

    def is_good(self, compiled: Compiled) -> bool:
        """Write what the command asks for, and run it. Its output goes to stderr."""
        with tempfile.TemporaryDirectory(prefix="llvq-bisect-") as folder:
            program, box = Path(folder) / "trial.nvfp4", Path(folder) / "trial.llvq"
            tokenizer = self.model.bundle.tokenizer
            write_program(compiled, self.model.source, program, tokenizer=tokenizer)
            if any(BOX in word for word in self.command):
                export_box(open_checked(program, kinds=("program",)), CPU, box)
            places = {PROGRAM: str(program), BOX: str(box)}
            return _run([_filled(word, places) for word in self.command]) == 0

    def told(self, limit: int, verdict: str) -> None:
        note(f"{limit:>6} rewrites: {verdict}")


def _filled(word: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        word = word.replace(name, path)
    return word


def _run(command: list[str]) -> int:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise RecipeError(
            f"{command[0]} cannot be run",
            because=error.strerror or str(error),
            fix="name a program: llvq passes bisect MODEL -- python check.py {program}",
        ) from error
    for stream in (done.stdout, done.stderr):
        if stream.strip():
            note(stream.strip())
    return done.returncode


def show_culprit(culprit: Culprit, *, as_json: bool) -> None:
    rewrite = culprit.rewrite
    if as_json:
        print_json(asdict(culprit))
        return
    print_fields(
        [
            ("first bad rewrite", f"{culprit.number} of {culprit.total}"),
            ("pass", rewrite.pass_name),
            ("rule", rewrite.rule),
            ("node", rewrite.node),
            ("module", rewrite.module or None),
            ("source", rewrite.source or None),
        ]
    )
    if not culprit.buildable:
        note("note: fewer rewrites cannot be built, so it may also be one of those before it")
    note(
        f"next: --limit {culprit.number - 1} --print-ir-after {rewrite.pass_name}, then "
        f"--limit {culprit.number}, and compare"
    )
