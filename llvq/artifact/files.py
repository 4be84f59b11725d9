"""The files of a box against the table in its manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llvq.artifact.manifest import MANIFEST, REPORT, SEAL, damaged


def sha256_of(path: Path) -> str:
    """Streaming; about 1 s for each GB, without the interpreter's lock."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry below `root` that is not a folder: its path with `/`, links not followed."""
    pending = [(root, "")]
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append((Path(entry.path), path + "/"))
                else:
                    yield path, entry


def check_files(root: Path, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Exactly the listed files are there, beside the manifest and report/, each of its size."""
    found = {}
    for path, entry in files_in(root):
        if not entry.is_file(follow_symlinks=False):
            kind = "a link" if entry.is_symlink() else "not a plain file"
            raise damaged(f"{path!r} is {kind}", where=str(root), because="a box holds its files")
        if path not in (MANIFEST, SEAL) and not path.startswith(REPORT + "/"):
            found[path] = entry.stat(follow_symlinks=False).st_size
    missing = sorted(table.keys() - found.keys())
    if missing:
        raise damaged(f"{_list(missing)} missing", where=str(root), because="the manifest lists it")
    surplus = sorted(found.keys() - table.keys())
    if surplus:
        raise damaged(
            f"{_list(surplus)} not of the box",
            where=str(root),
            because="the manifest has no such file",
        )
    for path, size in sorted(found.items()):
        if size != table[path]["bytes"]:
            raise damaged(
                f"{path} has {size} bytes, not {table[path]['bytes']}",
                where=str(root),
                because="it was changed or cut off after the box was written",
            )


def check_bytes(
    root: Path, table: Mapping[str, Mapping[str, Any]], *, skip_weights: bool = False
) -> None:
    """Every listed file has the sha256 of the manifest. Files are read several at a time."""
    paths = [p for p in sorted(table) if not (skip_weights and p.startswith("weights/"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(pool.map(sha256_of, (root / path for path in paths)))
    for path, found in zip(paths, hashes, strict=True):
        if found != table[path]["sha256"]:
            raise damaged(
                f"{path} is damaged",
                where=str(root),
                because="its sha256 is not the one in the manifest",
            )


def _list(paths: list[str]) -> str:
    shown = ", ".join(repr(path) for path in paths[:5])
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return f"{shown}{more} {'is' if len(paths) == 1 else 'are'}"
