"""Put a finished folder where it belongs, in place of the one that is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def take_place(part: Path, path: Path, old: Path) -> None:
    """Rename `part` to `path`; what is at `path` waits at `old` meanwhile, and is then removed.

    All three lie in one folder. Raises OSError, and what was at `path` is there as before.
    """
    if not os.path.lexists(path):
        os.rename(part, path)
        return
    os.rename(path, old)
    try:
        os.rename(part, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)
