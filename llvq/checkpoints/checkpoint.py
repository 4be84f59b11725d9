"""What every reader returns: tensors under the module's names, the sizes read off them, notes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from llvq.errors import CheckpointError
from llvq.sources import TensorSource, TensorSpec

Config = TypeVar("Config")


@dataclass(frozen=True)
class Checkpoint(Generic[Config]):
    """`notes` are sentences for the user: every guess that the reader made."""

    tensors: TensorSource
    config: Config
    notes: tuple[str, ...] = ()


def all_specs(source: TensorSource) -> dict[str, TensorSpec]:
    return {name: source.spec(name) for name in source.names()}


def json_beside(path: Path, name: str) -> dict[str, Any]:
    """The object in the file `name` beside `path` (inside it, if a folder); {} if there is none.

    Errors: CheckpointError if the file is there and does not hold a JSON object.
    """
    file = (path if path.is_dir() else path.parent) / name
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} is not readable JSON",
            where=str(file),
            because=str(error),
            fix=f"repair {file}, or delete it to use what the tensors say",
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{name} does not hold a JSON object",
            where=str(file),
            because=f"its outermost value is a {type(value).__name__}",
            fix=f"repair {file}, or delete it to use what the tensors say",
        )
    return value


def positive_int(value: object, *, key: str, where: Path) -> int:
    """`value`, an int above 0 or its digits. Errors: CheckpointError that names `key`."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise CheckpointError(
        f"{key} = {value!r} is not a size",
        where=str(where),
        because="sizes are integers above 0",
        fix=f"correct {key} in the config beside the checkpoint",
    )
