"""The streaming schedule, of which a checkpoint itself says nothing."""

from __future__ import annotations

from dataclasses import asdict
from os import PathLike
from pathlib import Path

from llvq.checkpoints.checkpoint import json_beside
from llvq.errors import CheckpointError
from llvq.models.config import LONGLIVE2_5B, StreamConfig


def read_stream(
    path: str | PathLike[str], default: StreamConfig = LONGLIVE2_5B.stream
) -> StreamConfig:
    """The streaming schedule in `config.json` (key `stream`) beside a checkpoint, over `default`.

    Errors: CheckpointError for unknown keys or values of another type, RecipeError for values that
    do not go together.
    """
    path = Path(path)
    stated = json_beside(path, "config.json").get("stream", {})
    known = asdict(default)
    if isinstance(stated, dict):
        bad = [key for key in stated if key not in known or not _like(stated[key], known[key])]
        if not bad:
            return StreamConfig.from_dict({**known, **stated})
        because = f"not understood: {', '.join(bad)}"
    else:
        because = "it is not a JSON object"
    raise CheckpointError(
        "`stream` in config.json is not a streaming schedule",
        where=str(path),
        because=because,
        fix=f"use the keys {', '.join(known)}, with values like the defaults",
    )


def _like(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list) and all(type(item) is int for item in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)
