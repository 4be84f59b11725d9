"""calibration.safetensors: facts about linears in one file, and how they were found.

The file joins the checkpoint as one more source. Its header says which checkpoint it is for, so
that facts of another are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from llvq import canonical_json
from llvq.calibrate.identity import checkpoint_digest
from llvq.calibration import FACTS, calibration_of
from llvq.checkpoints.model import VideoModel
from llvq.checkpoints.safetensors_file import SafetensorsSource
from llvq.errors import CheckpointError
from llvq.sources import JoinedSource

HEADER, FORMAT = "llvq.calibration", 1


def dump_facts(facts: Mapping[str, Tensor], made: Mapping[str, Any]) -> bytes:
    """The file: `facts` under names of the whole model, `made` as a tree of plain values."""
    header = canonical_json.dumps({"format": FORMAT, **made}).decode("ascii")
    return save(dict(sorted(facts.items())), metadata={HEADER: header})


def read_header(path: Path) -> dict[str, Any]:
    """How the facts in a file were found. Raises CheckpointError for any other file."""
    return _header(_source(path))


def with_facts(model: VideoModel, path: Path) -> VideoModel:
    """The model with the facts of a file beside its weights.

    Raises CheckpointError for a file that is damaged, of another checkpoint, or does not fit, and
    for a checkpoint that brings facts of its own.
    """
    check_bare(model)
    source = _source(path)
    header = _header(source)
    if header.get("checkpoint") != checkpoint_digest(model.source, "dit."):
        raise CheckpointError(
            f"{path.name} was made for another checkpoint",
            where=str(path),
            because=f"{model.bundle.dit} has other weights",
            fix="calibrate this checkpoint: --calibrate modelopt:<config>",
        )
    strange = [name for name in source.names() if name.rpartition(".")[2] not in FACTS]
    if strange:
        raise _none(path, f"it holds {strange[0]}, which is no fact about a linear")
    joined = JoinedSource([("", model.source), ("", source)])
    return replace(model, source=joined, calibration=calibration_of(joined))


def check_bare(model: VideoModel) -> None:
    """Raises CheckpointError for a checkpoint whose linears are quantized or calibrated already."""
    where = str(model.bundle.dit)
    for name in model.source.names():
        if name.endswith(".weight") and model.source.packed(name) is not None:
            raise CheckpointError(
                "this checkpoint is quantized already, and cannot be calibrated",
                where=where,
                because=f"{name} is stored in NVFP4",
                fix="calibrate the BF16 checkpoint that it was made from",
            )
    if model.calibration:
        raise CheckpointError(
            "this checkpoint brings a calibration of its own",
            where=where,
            because=f"there are facts about {next(iter(model.calibration))}",
            fix="leave out --calibrate and --calibration to use it",
        )


def _source(path: Path) -> SafetensorsSource:
    return SafetensorsSource(path, [path])


def _header(source: SafetensorsSource) -> dict[str, Any]:
    text = source.metadata.get(HEADER)
    if text is None:
        raise _none(source.path, f"its header has no {HEADER}")
    try:
        header = canonical_json.loads(text.encode("utf-8"))
    except ValueError as error:
        raise _none(source.path, f"its header is damaged: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _none(source.path, f"this llvq reads format {FORMAT}")
    return header


def _none(path: Path, because: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is not a calibration of llvq",
        where=str(path),
        because=because,
        fix="pass the calibration.safetensors that llvq quantize --calibrate wrote",
    )
