"""`llvq inspect`: what a box, a program or a checkpoint is, without loading a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llvq.cli import options
from llvq.errors import RecipeError


def inspect(
    path: Annotated[Path, typer.Argument(help="A box, a program or a checkpoint.")],
    graph: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Print the graph of a stage.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what a box, a program or a checkpoint is. Loads no weight, executes nothing.

    \b
      llvq inspect model.llvq
      llvq inspect model.nvfp4 --graph denoise
      llvq inspect model_bf16.pt --json
    """
    if (path / "manifest.json").is_file():
        _inspect_box(path, graph, as_json=json)
        return
    if graph is not None:
        raise RecipeError(
            "--graph was given for a checkpoint",
            where=str(path),
            because="only programs and boxes hold graphs",
            fix=f"llvq quantize {path}",
        )
    from llvq.cli.checkpoint_tables import describe, show
    from llvq.cli.table import print_json

    description = describe(path)
    if json:
        print_json(description)
    else:
        show(description)


def _inspect_box(path: Path, graph: str | None, *, as_json: bool) -> None:
    from llvq.cli.box_tables import describe, graph_text, show
    from llvq.cli.table import print_json
    from llvq.runtime.load import open_checked

    box = open_checked(path, hash_weights=False)
    if graph is not None:
        print(graph_text(box, graph), end="")
    elif as_json:
        print_json(describe(box))
    else:
        show(describe(box))
