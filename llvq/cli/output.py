"""Check where a result will go before any work is done for it."""

from __future__ import annotations

import os
from pathlib import Path

from llvq.errors import OutputError


def check_output(path: Path, *, force: bool) -> None:
    """Raise OutputError for a path that is taken (without `force`) or cannot be written."""
    if os.path.lexists(path) and not force:
        raise OutputError(
            f"{path} is there already",
            where=str(path.absolute()),
            because="nothing is overwritten unless asked for",
            fix="add --force, or name another path with -o",
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(
            f"{path.name} has no folder to go to",
            where=str(folder),
            because="there is no such folder",
            fix=f"mkdir -p {folder}",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path.name} cannot be written",
            where=str(folder),
            because="you may not write to this folder",
            fix="name another path with -o",
        )
