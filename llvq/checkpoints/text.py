"""The UMT5 encoder: Wan's `models_t5_umt5-xxl-enc-bf16.pth` or transformers' safetensors.

Tensors come out under transformers' names (`UMT5EncoderModel.state_dict()`), which are also the
names of `llvq.models.text.TextEncoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from llvq.checkpoints.text_names import LAYER, TABLE, text_specs
from llvq.errors import CheckpointError
from llvq.models.config import TextConfig
from llvq.sources import RenamedSource, TensorSource, TensorSpec

# Of a full UMT5: the decoder, and a second name of the embedding.
UNUSED = ("decoder.", "lm_head.", "encoder.embed_tokens.")
SECOND = "encoder.embed_tokens.weight"
# Keys of transformers' config.json, and what they must be equal to.
SAME = {
    "vocab_size": "vocab_size",
    "d_model": "dim",
    "d_ff": "ffn_dim",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "relative_attention_num_buckets": "num_buckets",
    "layer_norm_epsilon": "eps",
}


def read_text_encoder(path: str | PathLike[str]) -> Checkpoint[TextConfig]:
    """Open a UMT5 encoder, of either naming, and infer its sizes.

    Errors: CheckpointError if it is not a UMT5 encoder with one relative bias per layer.
    """
    path = Path(path)
    source = open_tensors(path)
    names, spelling = TABLE.in_left(_used(source, path), path)
    tensors = RenamedSource(source, names)
    specs = all_specs(tensors)
    stated = json_beside(path, "config.json")
    config = _config(specs, stated, path)
    check_keys(specs, in_bf16(text_specs(config)), f"the text encoder in {path}")
    _check_stated(config, stated, path)
    size = "UMT5-XXL" if config == TextConfig() else f"UMT5, {config.num_layers} layers"
    shards = f", {len(source.files)} shards" if len(source.files) > 1 else ""
    return Checkpoint(
        tensors, config, (f"recognised: text encoder {size}, {spelling} names{shards}",)
    )


def _used(source: TensorSource, path: Path) -> dict[str, str]:
    """Names of what the encoder needs; the embedding may be there under its second name."""
    names = {name: name for name in source.names() if not name.startswith(UNUSED)}
    if SECOND not in source.names():
        return names
    if "shared.weight" not in names:
        return {"shared.weight": SECOND, **names}
    if source.spec(SECOND) != source.spec("shared.weight"):
        raise CheckpointError(
            f"{path.name} has two embeddings",
            where=str(path),
            because=f"shared.weight is {list(source.spec('shared.weight').shape)}, "
            f"{SECOND} is {list(source.spec(SECOND).shape)}",
            fix="download the text encoder again",
        )
    return names


def _config(
    specs: Mapping[str, TensorSpec], stated: Mapping[str, object], path: Path
) -> TextConfig:
    first = "encoder.block.0.layer.0.SelfAttention"
    vocab_size, dim = _matrix(specs, "shared.weight", path)
    buckets, heads = _matrix(specs, f"{first}.relative_attention_bias.weight", path)
    layers = {match[1] for name in specs if (match := LAYER.match(name))}
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


def _check_stated(config: TextConfig, stated: Mapping[str, object], path: Path) -> None:
    """What the config.json of a UMT5 says must be what the tensors say, and what llvq computes."""
    if stated.get("model_type") != "umt5":
        return
    found: dict[str, object] = {key: getattr(config, name) for key, name in SAME.items()}
    found["d_kv"] = config.attn_dim // config.num_heads
    found["feed_forward_proj"] = "gated-gelu"
    for key, value in found.items():
        if stated.get(key) not in (None, value):
            raise CheckpointError(
                f"config.json and the tensors of the text encoder disagree on {key}",
                where=str(path),
                because=f"config.json says {str(stated[key])[:80]}, llvq reads {value}",
                fix="download both again, from one revision of the checkpoint",
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
