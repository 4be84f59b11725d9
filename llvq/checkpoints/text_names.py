"""Names of the UMT5 encoder's tensors: Wan's and transformers', one table for both directions."""

from __future__ import annotations

import re

from llvq.checkpoints.name_table import NameTable
from llvq.models.config import TextConfig

TABLE = NameTable(
    "transformers'",
    "Wan's own",
    (
        ("shared.weight", "token_embedding.weight"),
        ("encoder.block.{}.layer.0.layer_norm.weight", "blocks.{}.norm1.weight"),
        ("encoder.block.{}.layer.0.SelfAttention.q.weight", "blocks.{}.attn.q.weight"),
        ("encoder.block.{}.layer.0.SelfAttention.k.weight", "blocks.{}.attn.k.weight"),
        ("encoder.block.{}.layer.0.SelfAttention.v.weight", "blocks.{}.attn.v.weight"),
        ("encoder.block.{}.layer.0.SelfAttention.o.weight", "blocks.{}.attn.o.weight"),
        (
            "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
            "blocks.{}.pos_embedding.embedding.weight",
        ),
        ("encoder.block.{}.layer.1.layer_norm.weight", "blocks.{}.norm2.weight"),
        ("encoder.block.{}.layer.1.DenseReluDense.wi_0.weight", "blocks.{}.ffn.gate.0.weight"),
        ("encoder.block.{}.layer.1.DenseReluDense.wi_1.weight", "blocks.{}.ffn.fc1.weight"),
        ("encoder.block.{}.layer.1.DenseReluDense.wo.weight", "blocks.{}.ffn.fc2.weight"),
        ("encoder.final_layer_norm.weight", "norm.weight"),
    ),
)
LAYER = re.compile(r"encoder\.block\.([0-9]{1,6})\.")


def text_specs(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Name in transformers -> shape of every tensor of the encoder."""
    dim, attn, ffn = config.dim, config.attn_dim, config.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {
        "q": (attn, dim),
        "k": (attn, dim),
        "v": (attn, dim),
        "o": (dim, attn),
        "relative_attention_bias": (config.num_buckets, config.num_heads),
        "wi_0": (ffn, dim),
        "wi_1": (ffn, dim),
        "wo": (dim, ffn),
        "layer_norm": (dim,),
        "final_layer_norm": (dim,),
        "shared": (config.vocab_size, dim),
    }
    specs: dict[str, tuple[int, ...]] = {}
    for pattern, _ in TABLE.rows:
        layers = range(config.num_layers) if "{}" in pattern else range(1)
        specs |= {pattern.format(layer): shapes[pattern.split(".")[-2]] for layer in layers}
    return specs
