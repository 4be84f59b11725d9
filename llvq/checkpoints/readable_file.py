"""Whether a path names a file with something in it, before a reader of its format looks."""

from __future__ import annotations

from pathlib import Path

from llvq.errors import CheckpointError

LFS_POINTER = b"version https://git-lfs"


def check_readable(path: Path) -> None:
    """Raises CheckpointError for what is missing, unreadable, empty or a pointer of git-lfs."""
    if not path.is_file():
        raise CheckpointError(
            "no checkpoint there",
            where=str(path),
            because="there is no such file or folder",
            fix=f"check the path: ls {path.parent}",
        )
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read",
            where=str(path),
            because=str(error.strerror),
            fix=f"check its permissions: ls -l {path}",
        ) from error
    if not start:
        raise CheckpointError(
            f"{path.name} is empty",
            where=str(path),
            because="the file has 0 bytes",
            fix="download or copy it again",
        )
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path.name} is a git-lfs pointer, not the weights",
            where=str(path),
            because="the repository was cloned without git-lfs",
            fix=f"cd {path.parent} && git lfs pull",
        )
