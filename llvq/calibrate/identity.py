"""Which run a calibration is of: checkpoint, videos, config. Equal identities give equal facts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llvq import canonical_json
from llvq.artifact.files import sha256_of
from llvq.calibrate.configs import Config
from llvq.checkpoints.model import VideoModel
from llvq.sources import TensorSource

# Rows of each tensor that are looked at: a merge or a finetune moves all rows of what it touches.
ROWS = 4


def checkpoint_digest(source: TensorSource, part: str) -> str:
    """sha256 over names, dtypes, shapes and first rows of the weights and biases of one part.

    Facts about a linear (`calibration.py`) have no part in it.
    """
    digest = hashlib.sha256()
    for name in sorted(source.names()):
        if name.startswith(part) and name.endswith((".weight", ".bias", ".modulation")):
            spec = source.spec(name)
            digest.update(f"{name} {spec.dtype} {list(spec.shape)}\n".encode())
            digest.update(_bytes_of(source.read_rows(name, 0, ROWS)))
    return digest.hexdigest()


def prompts_digest(prompts: Sequence[str] | Tensor) -> str:
    """sha256 of the prompts in clear, or of their embeddings."""
    if isinstance(prompts, Tensor):
        return hashlib.sha256(_bytes_of(prompts)).hexdigest()
    return hashlib.sha256(canonical_json.dumps(list(prompts))).hexdigest()


def identity_of(
    model: VideoModel, config: Config, layers: Sequence[str], videos: dict[str, Any], tool: str
) -> dict[str, Any]:
    """`videos` says what is run, `tool` which version of ModelOpt calibrates."""
    stream = model.config.stream
    tokenizer = model.bundle.tokenizer
    return {
        "config": {"name": config.name, **config.algorithm},
        "modelopt": tool,
        "checkpoint": checkpoint_digest(model.source, "dit."),
        "encoder": checkpoint_digest(model.source, "text."),
        "tokenizer": sha256_of(tokenizer) if tokenizer else None,
        "layers": hashlib.sha256("\n".join(layers).encode()).hexdigest(),
        "schedule": [
            [stream.frames_per_chunk, stream.window_frames, stream.sink_frames],
            [stream.steps, stream.shift, stream.sampler, list(stream.timesteps)],
            stream.relative_rope,
        ],
        **videos,
    }


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
