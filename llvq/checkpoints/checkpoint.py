"""What every reader returns: tensors under the module's names, the sizes read off them, notes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from llvq.errors import CheckpointError
from llvq.sources import TensorSource, TensorSpec

Config = TypeVar("Config")
DIGITS = re.compile(r"[0-9]{1,10}")
MAX_SIZE = 2**31
MAX_JSON_BYTES = 64 * 2**20


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
        value = read_json(file)
    except (OSError, ValueError, RecursionError) as error:
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


def read_json(file: Path) -> Any:
    """Raises OSError, ValueError (also for a file that no config or index is as large as),
    RecursionError.
    """
    if (size := file.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"it has {size} bytes, more than {MAX_JSON_BYTES}")
    return json.loads(file.read_text(encoding="utf-8"))


def positive_int(value: object, *, key: str, where: Path) -> int:
    """`value`, an int above 0 or its digits. Errors: CheckpointError that names `key`."""
    if isinstance(value, str) and DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_SIZE:
        return value
    raise CheckpointError(
        f"{key} = {str(value)[:40]!r} is not a size",
        where=str(where),
        because=f"sizes are integers above 0 and below {MAX_SIZE}",
        fix=f"correct {key} in the config beside the checkpoint",
    )
