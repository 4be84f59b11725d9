"""A folder of ONNX models on disk: all of it, or nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType

from llvq.artifact.place import take_place
from llvq.errors import OutputError

SUFFIX = ".onnx"
DATA_SUFFIX = ".onnx.data"


class OnnxFolder:
    """Hands out a hidden folder beside `path`, and renames it into place at the end of the block.

    Leaving the block by an exception removes it; what could not be written is OutputError. With
    `overwrite` it takes the place of a folder that holds ONNX models and nothing else.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite
        self._part = path.with_name(f".{path.name}.part-{os.getpid()}")
        self._old = path.with_name(f".{path.name}.old-{os.getpid()}")

    def __enter__(self) -> Path:
        check_replaceable(self.path, overwrite=self._overwrite)
        try:
            # Only a dead process that had our id can have left one.
            shutil.rmtree(self._part, ignore_errors=True)
            self._part.mkdir()
        except OSError as error:
            raise self._failed(error) from error
        return self._part

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                take_place(self._part, self.path, self._old)
        except OSError as failure:
            raise self._failed(failure) from failure
        finally:
            shutil.rmtree(self._part, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            "the ONNX models could not be written",
            where=str(self.path),
            because=error.strerror or str(error),
            fix="free space there, or name a folder you may write to; nothing was left behind",
        )


def check_replaceable(path: Path, *, overwrite: bool) -> None:
    """Raises OutputError for a path that is taken, unless it may be and is to be replaced."""
    if not os.path.lexists(path):
        return
    is_ours = not path.is_symlink() and path.is_dir() and _holds_models(path)
    if overwrite and is_ours:
        return
    raise OutputError(
        f"{path} is there already",
        where=str(path.absolute()),
        because="nothing is overwritten unless asked for"
        if is_ours
        else "it is not a folder of ONNX models and nothing else, so it is not replaced",
        fix="add --force, or name another path with -o" if is_ours else "name another path with -o",
    )


def _holds_models(path: Path) -> bool:
    names = [entry.name for entry in path.iterdir()]
    known = all(name.endswith((SUFFIX, DATA_SUFFIX)) for name in names)
    return known and any(name.endswith(SUFFIX) for name in names)
