"""What a benchmark says of itself: its command, what it is doing, and the files that it leaves."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def command_of(name: str) -> str:
    """What was typed to run `benchmarks.<name>`."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])


def note(text: str) -> None:
    """With the time, on stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def write_files(
    folder: Path | None, name: str, found: Mapping[str, Any], text: str | None = None
) -> None:
    """NAME.json and, if there is one, the text as NAME.txt; nothing without a folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if text is not None:
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    document = json.dumps(found, indent=1) + "\n"
    (folder / f"{name}.json").write_text(document, encoding="utf-8")
