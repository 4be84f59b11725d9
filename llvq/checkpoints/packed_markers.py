"""What markers beside packed layers say, where that changes what the bytes mean.

ComfyUI marks a layer by a tensor `X.comfy_quant` that holds JSON, or all of them in the header;
ModelOpt's single files have the latter too. A marker may say that the weight was rotated first
(`convrot`): llvq would decode it to another matrix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from llvq.errors import CheckpointError
from llvq.sources import TensorSource

HEADER = "_quantization_metadata"
TENSOR = "comfy_quant"
MAX_BYTES = 1 << 16
ROTATED = "convrot"


def check_markers(source: TensorSource, metadata: Mapping[str, object], path: Path) -> None:
    """Raise CheckpointError for a marker that is none, or that says what llvq does not read."""
    for where, marker in _markers(source, metadata, path):
        said = marker.get("format") if isinstance(marker, dict) else None
        if not isinstance(said, str) or "nvfp4" not in said.lower():
            raise _refusal(f"{where} says format {said!r}, not nvfp4", path)
        if marker.get(ROTATED):
            raise _refusal(f"{where} says that the weight was rotated ({ROTATED})", path)


def _markers(
    source: TensorSource, metadata: Mapping[str, object], path: Path
) -> Iterator[tuple[str, Any]]:
    if HEADER in metadata:
        layers = _parsed(str(metadata[HEADER]), HEADER, path).get("layers", {})
        if not isinstance(layers, dict):
            raise _refusal(f"`layers` of {HEADER} is no object", path)
        yield from ((f"{HEADER} of {layer[:80]}", marker) for layer, marker in layers.items())
    for name in source.names():
        if name.rpartition(".")[2] == TENSOR:
            spec = source.spec(name)
            if spec.dtype != torch.uint8 or spec.nbytes > MAX_BYTES:
                raise _refusal(f"{name} is {spec.dtype} {list(spec.shape)}, expected JSON", path)
            yield name, _parsed(bytes(source.read(name).reshape(-1).tolist()), name, path)


def _parsed(text: str | bytes, where: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"{where} is not JSON: {error}", path) from error
    if not isinstance(value, dict):
        raise _refusal(f"{where} is no JSON object", path)
    return value


def _refusal(because: str, path: Path) -> CheckpointError:
    return CheckpointError(
        f"a packed layer of {path.name} is marked as something else",
        where=str(path),
        because=because,
        fix="export it in plain NVFP4: no rotation, no FP8 layers",
    )
