"""The UMT5 encoder: Wan's `models_t5_umt5-xxl-enc-bf16.pth` or transformers' safetensors.

Tensors come out under transformers' names (`UMT5EncoderModel.state_dict()`), which are also the
names of `llvq.models.text.TextEncoder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from llvq.checkpoints.checkpoint import (
    Checkpoint,
    all_specs,
    json_beside,
    positive_int,
)
from llvq.checkpoints.keys import check_keys
from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.specs import in_bf16
from llvq.checkpoints.text_names import LAYER, TO_TRANSFORMERS, rename, text_specs
from llvq.errors import CheckpointError
from llvq.models.config import TextConfig
from llvq.sources import RenamedSource, TensorSpec

# Of a full UMT5: the decoder, and a second name of the embedding.
UNUSED = ("decoder.", "lm_head.", "encoder.embed_tokens.")


def read_text_encoder(path: str | PathLike[str]) -> Checkpoint[TextConfig]:
    """Open a UMT5 encoder, of either naming, and infer its sizes.

    Errors: CheckpointError if it is not a UMT5 encoder with one relative bias per layer.
    """
    path = Path(path)
    source = open_tensors(path)
    tensors = RenamedSource(source, _transformers_names(source.names()))
    specs = all_specs(tensors)
    config = _config(specs, json_beside(path, "config.json"), path)
    check_keys(specs, in_bf16(text_specs(config)), f"the text encoder in {path}")
    return Checkpoint(tensors, config)


def _transformers_names(names: Sequence[str]) -> dict[str, str]:
    """Name in transformers -> name in the file."""
    renamed = {rename(name, TO_TRANSFORMERS): name for name in names}
    if "shared.weight" not in renamed and "encoder.embed_tokens.weight" in renamed:
        renamed["shared.weight"] = renamed["encoder.embed_tokens.weight"]
    return {new: old for new, old in renamed.items() if not new.startswith(UNUSED)}


def _config(
    specs: Mapping[str, TensorSpec], stated: Mapping[str, object], path: Path
) -> TextConfig:
    first = "encoder.block.0.layer.0.SelfAttention"
    vocab_size, dim = _matrix(specs, "shared.weight", path)
    buckets, heads = _matrix(specs, f"{first}.relative_attention_bias.weight", path)
    layers = {match[2] for name in specs if (match := LAYER.match(name))}
    distance = stated.get("relative_attention_max_distance", TextConfig.max_distance)
    return TextConfig(
        vocab_size=vocab_size,
        dim=dim,
        attn_dim=_matrix(specs, f"{first}.q.weight", path)[0],
        ffn_dim=_matrix(specs, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", path)[0],
        num_heads=heads,
        num_layers=len(layers),
        num_buckets=buckets,
        max_distance=positive_int(distance, key="relative_attention_max_distance", where=path),
    )


def _matrix(specs: Mapping[str, TensorSpec], name: str, path: Path) -> tuple[int, int]:
    if name in specs and len(shape := specs[name].shape) == 2 and 0 not in shape:
        return shape[0], shape[1]
    raise CheckpointError(
        f"{path.name} is not a UMT5 encoder",
        where=str(path),
        because=f"{name} is missing or not a matrix",
        fix="name the text encoder, such as models_t5_umt5-xxl-enc-bf16.pth",
    )
