"""Check where a result will go before any work is done for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from llvq.errors import OutputError

Kind = Literal["file", "box", "folder"]
NOT_ALIKE = {
    "file": "it is a folder",
    "box": "it is not a program or box of llvq",
    "folder": "it is a file",
}


def check_output(path: Path, *, force: bool, kind: Kind = "folder") -> None:
    """Raise OutputError for a path that is taken (without `force`) or cannot be written.

    A file may replace a file, and a box only a box; what goes into a folder may join what is there.
    """
    if os.path.lexists(path):
        _check_replaceable(path, force=force, kind=kind)
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


def _check_replaceable(path: Path, *, force: bool, kind: Kind) -> None:
    is_box = (path / "manifest.json").is_file() and not path.is_symlink()
    alike = {"file": not path.is_dir(), "box": is_box, "folder": path.is_dir()}[kind]
    if force and alike:
        return
    told = " is not replaced, even with --force" if force else " is there already"
    raise OutputError(
        f"{path}{told}",
        where=str(path.absolute()),
        because="nothing is overwritten unless asked for" if alike else NOT_ALIKE[kind],
        fix="add --force, or name another path with -o" if alike else "name another path with -o",
    )
