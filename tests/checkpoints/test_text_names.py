from __future__ import annotations

from math import prod

import torch
from transformers import UMT5Config, UMT5EncoderModel

from llvq.checkpoints.text_names import TABLE, text_specs
from llvq.models.config import TextConfig


def test_the_table_goes_both_ways() -> None:
    for name in text_specs(TextConfig()):
        wan = TABLE.to_right(name)
        assert wan is not None and wan != name and TABLE.to_left(wan) == name


def test_unknown_names_are_none() -> None:
    for name in ("blocks.0.other", "x", "blocks.x.attn.q.weight"):
        assert TABLE.to_left(name) is None


def test_the_names_and_shapes_are_those_of_transformers() -> None:
    with torch.device("meta"):
        config = UMT5Config(
            vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
        )
        oracle = UMT5EncoderModel(config).state_dict()
    oracle.pop("encoder.embed_tokens.weight", None)
    assert text_specs(TextConfig()) == {n: tuple(t.shape) for n, t in oracle.items()}


def test_the_published_encoder_has_5_7b_parameters() -> None:
    assert round(sum(prod(s) for s in text_specs(TextConfig()).values()) / 1e9, 2) == 5.68
