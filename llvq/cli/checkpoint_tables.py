"""The tables of a checkpoint file, from the header of its tensors alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llvq.checkpoints.checkpoint import Checkpoint
from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.text import read_text_encoder
from llvq.checkpoints.vae import read_vae
from llvq.cli.table import human, note, print_fields, print_table
from llvq.errors import CheckpointError
from llvq.sources import TensorSource

SHORT = 8  # statistics of every channel are for --json
READERS: Mapping[str, Callable[[Path], Checkpoint[Any]]] = {
    "denoiser": read_dit,
    "VAE": read_vae,
    "text encoder": read_text_encoder,
}


def describe(path: Path) -> dict[str, Any]:
    """Kind, sizes, and tensors by group. Raises CheckpointError if it is no checkpoint at all."""
    source: TensorSource = open_tensors(path)
    kind, config, notes = None, None, tuple[str, ...]()
    reasons: dict[str, str] = {}
    for name, reader in READERS.items():
        try:
            found = reader(path)
        except CheckpointError as error:
            reasons[name] = error.because or error.what
            continue
        kind, config, notes, source = name, asdict(found.config), found.notes, found.tensors
        break
    return {
        "path": str(path),
        "kind": kind,
        "not": {} if kind else reasons,
        "config": config,
        "notes": list(notes),
        "groups": _groups(source),
    }


def show(checkpoint: Mapping[str, Any]) -> None:
    groups = checkpoint["groups"]
    total = sum(group["bytes"] for group in groups.values())
    fields = [("checkpoint", checkpoint["path"]), ("kind", checkpoint["kind"] or "not known")]
    fields += [(f"no {kind}", reason) for kind, reason in checkpoint["not"].items()]
    config = checkpoint["config"] or {}
    fields += [(k, v) for k, v in config.items() if not isinstance(v, tuple) or len(v) <= SHORT]
    print_fields([*fields, ("bytes", human(total))])
    print()
    rows = [
        (name, group["dtypes"], group["tensors"], human(group["bytes"]))
        for name, group in groups.items()
    ]
    print_table("tensors", ("group", "dtypes", "tensors", "bytes"), rows, left=2)
    for text in checkpoint["notes"]:
        note(f"note: {text}")


def _groups(source: TensorSource) -> dict[str, dict[str, Any]]:
    """Tensors by the first part of their name."""
    names: dict[str, list[str]] = {}
    for name in source.names():
        names.setdefault(name.split(".")[0], []).append(name)
    return {group: _group(source, members) for group, members in names.items()}


def _group(source: TensorSource, names: list[str]) -> dict[str, Any]:
    specs = [source.spec(name) for name in names]
    dtypes = Counter(str(spec.dtype).removeprefix("torch.") for spec in specs)
    return {
        "dtypes": ", ".join(dtypes),
        "tensors": len(specs),
        "bytes": sum(spec.nbytes for spec in specs),
    }
