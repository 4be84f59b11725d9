"""Which files of a folder make up one checkpoint, and whether all of them are there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llvq.checkpoints.checkpoint import read_json
from llvq.checkpoints.readable_file import check_readable
from llvq.checkpoints.safetensors_file import SafetensorsSource
from llvq.errors import CheckpointError

SHARD = re.compile(r"(.+)-([0-9]{1,6})-of-([0-9]{1,6})\.safetensors")
MAX_SHARDS = 10_000
LISTED = 5


def open_shards(folder: Path) -> SafetensorsSource:
    """The checkpoint in `folder`: what an `*.index.json` lists, the only file, or a numbered set.

    Raises CheckpointError if there are none, several, or not all of them.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        index = _indexed(indexes[0])
        return SafetensorsSource(folder, _all_there(folder, sorted(set(index.values()))), index)
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    whole = _numbered_set(names) or (names if len(names) == 1 else None)
    if whole is not None and not indexes:
        return SafetensorsSource(folder, _all_there(folder, whole))
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    raise CheckpointError(
        f"{folder.name} is not one checkpoint",
        where=str(folder),
        because=f"it has {len(names)} .safetensors files and {len(indexes)} index files",
        fix=f"convert {pickles[0]} and its like to safetensors: model.save_pretrained(FOLDER)"
        if pickles and not names
        else "name the checkpoint file instead of the folder",
    )


def refuse_one_shard(path: Path) -> None:
    """Raises CheckpointError if a file is named as one of several shards."""
    match = SHARD.fullmatch(path.name)
    if match is not None and int(match[3]) > 1:
        raise CheckpointError(
            f"{path.name} is one shard of {int(match[3])}",
            where=str(path),
            because="the tensors of the checkpoint are in all of them",
            fix=f"name the folder: {path.parent}",
        )


def _indexed(index: Path) -> dict[str, str]:
    """Tensor -> file."""
    try:
        weight_map = read_json(index)["weight_map"]
        entries = {str(name): str(file) for name, file in weight_map.items()}
        if entries and all(_is_plain(name) for name in set(weight_map.values())):
            return entries
        because = "it lists no files, or others than .safetensors files beside it"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        because = f"{type(error).__name__}: {error}"
    raise CheckpointError(
        f"{index.name} is not an index of shards",
        where=str(index),
        because=because,
        fix="download the index again",
    )


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name.isprintable() and name.endswith(".safetensors")


def _numbered_set(names: Sequence[str]) -> list[str] | None:
    """All names of the one set m-00001-of-00003.safetensors that `names` are of, else None."""
    matches = [SHARD.fullmatch(name) for name in names]
    sets = {(match[1], len(match[2]), match[3]) for match in matches if match}
    if len(sets) != 1 or not all(matches):
        return None
    stem, digits, last = sets.pop()
    if int(last) > MAX_SHARDS:
        return None
    whole = [f"{stem}-{i:0{digits}}-of-{last}.safetensors" for i in range(1, int(last) + 1)]
    return whole if set(names) <= set(whole) else None


def _all_there(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    files = tuple(folder / name for name in names)
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{len(missing)} of {len(files)} shards are missing",
            where=str(folder),
            because=f"there is no {', '.join(missing[:LISTED])}",
            fix="download the missing shards into the folder",
        )
    for file in files:
        check_readable(file)
    return files
