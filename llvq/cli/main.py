"""`llvq`: the commands, and what an error looks like from a shell."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import llvq
from llvq.cli.bench import bench
from llvq.cli.compare import compare
from llvq.cli.encode import encode
from llvq.cli.export import export
from llvq.cli.inspect import inspect
from llvq.cli.passes import passes_app
from llvq.cli.plan import plan
from llvq.cli.quantize import quantize
from llvq.cli.run import run
from llvq.cli.verify import verify
from llvq.errors import LlvqError

HELP = """Quantize long-video diffusion models to NVFP4, and run what comes out.

\b
  llvq quantize model_bf16.pt                 checkpoint -> program (NVFP4 weights and graphs)
  llvq export model_bf16.nvfp4                program -> box for one target
  llvq run model_bf16.llvq --prompt "..."     box -> mp4
"""

EXIT_CODES = """Exit codes:

\b
    0  done
    1  a bug in llvq, with a traceback
    2  wrong input: command line, checkpoint, recipe, number format, tensor, request
    3  the compiler gave up: capture, a missed rewrite, an illegal graph
    4  a box or a target does not fit, or a check failed
    5  the output could not be written
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)
"""

INTERRUPTED = 130
TERMINATED = 143
CODES = {"capture": 3, "miss": 3, "spec": 3, "artifact": 4, "target": 4, "output": 5}
WRONG_INPUT = 2


class Commands(TyperGroup):
    """Turns an error of llvq into its four lines and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LlvqError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(CODES.get(error.kind, WRONG_INPUT)) from error
        except KeyboardInterrupt as interrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    cls=Commands,
    help=HELP,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quantize)
app.command()(compare)
app.command()(export)
app.command()(run)
app.command()(encode)
app.command()(plan)
app.command()(bench)
app.command()(inspect)
app.command()(verify)
app.add_typer(passes_app, name="passes")


def show_version(asked: bool) -> None:
    if asked:
        print(f"llvq {llvq.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


def terminate(signal_number: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that every writer removes what it has half written."""
    raise SystemExit(TERMINATED)


def main() -> None:
    signal.signal(signal.SIGTERM, terminate)
    app()
