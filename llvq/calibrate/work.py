"""A folder that a calibration is resumed from: what it is for, and what has been gathered.

Every file appears whole or not at all. A folder for one run (checkpoint, videos, config) is refused
for another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llvq import canonical_json
from llvq.errors import OutputError, RecipeError

IDENTITY, FACTS = "run.json", "calibration.safetensors"
STATE = "state-{name}.safetensors"


class Work:
    """The folder at `path`, for the run that `identity` describes (a tree of plain values).

    With `force` a folder of another run is emptied of what llvq wrote. Raises RecipeError for one
    of another run, OutputError if it cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, force: bool = False) -> None:
        self.path, self.identity = path, identity
        found = self._found()
        if found is not None and found != canonical_json.dumps(identity):
            if not force:
                raise self._another(found)
            self.clear(keep=())
        self._make()
        self.write(IDENTITY, canonical_json.dumps(identity))

    @property
    def facts(self) -> Path:
        """Where the result is, or will be."""
        return self.path / FACTS

    def get(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """The tensors and notes that were put under a name; None if there are none, or damaged."""
        try:
            with safe_open(self.path / STATE.format(name=name), framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return tensors, dict(file.metadata() or {})
        except (OSError, SafetensorError):
            return None

    def put(self, name: str, tensors: Mapping[str, Tensor], **notes: str) -> None:
        self.write(STATE.format(name=name), save(dict(tensors), metadata=notes or None))

    def write(self, name: str, data: bytes) -> None:
        """Write a file at once or not at all. Raises OutputError."""
        part = self.path / f".{name}.part-{os.getpid()}"
        try:
            part.write_bytes(data)
            os.replace(part, self.path / name)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            with suppress(OSError):
                part.unlink()

    def clear(self, *, keep: tuple[str, ...] = (IDENTITY, FACTS)) -> None:
        """Remove what llvq wrote here, but for `keep`."""
        for pattern in (STATE.format(name="*"), IDENTITY, FACTS):
            for file in self.path.glob(pattern):
                if file.name not in keep:
                    file.unlink(missing_ok=True)

    def _found(self) -> bytes | None:
        try:
            return (self.path / IDENTITY).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unwritable(error) from error

    def _make(self) -> None:
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _another(self, found: bytes) -> RecipeError:
        try:
            before = canonical_json.loads(found)
        except ValueError:
            before = None
        before = before if isinstance(before, dict) else {}
        differing = sorted(
            k for k in {*before, *self.identity} if before.get(k) != self.identity.get(k)
        )
        return RecipeError(
            "another calibration was begun here",
            where=str(self.path),
            because=f"it differs in {', '.join(differing)}",
            fix="name another folder with --work, repeat the same command to resume it, "
            "or add --force to begin anew",
        )

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            "the state of the calibration cannot be written",
            where=str(self.path),
            because=error.strerror or str(error),
            fix="free space there, or name a folder you may write to with --work",
        )
