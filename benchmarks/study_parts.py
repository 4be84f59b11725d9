"""What a study has measured, on disk until its tables are: one that was interrupted goes on.

A part is the video of one variant and seed. Parts lie in a folder of their own for everything that
decides their numbers; of a model that is names, sizes and times of its files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.study_rows import Sample
from llvq.checkpoints.bundle import Bundle


@dataclass(frozen=True)
class Part:
    """One video, and the bytes of its variant's row."""

    nbytes: int
    sample: Sample


@dataclass(frozen=True)
class Parts:
    """Parts in `folder`, which is made with the first of them."""

    folder: Path

    def read(self, variant: str, seed: int) -> Part | None:
        path = self._path(variant, seed)
        if not path.exists():
            return None
        held = json.loads(path.read_text(encoding="utf-8"))
        return Part(held["nbytes"], Sample.read(held["sample"]))

    def write(self, variant: str, part: Part) -> None:
        """A part is there whole or not at all."""
        path = self._path(variant, part.sample.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(part)), encoding="utf-8")
        new.replace(path)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, variant: str, seed: int) -> Path:
        return self.folder / f"{variant.replace(' ', '-').replace(',', '')}.{seed}.json"


def fingerprint(bundle: Bundle, decides: Mapping[str, Any]) -> str:
    """Of the files of a model, and of all else that decides the numbers."""
    parts = (bundle.dit, bundle.vae, bundle.text_encoder, bundle.tokenizer)
    given = [part for part in parts if part is not None]
    files = sorted({file for part in given for file in (part, *part.rglob("*"))})
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([facts, decides], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
