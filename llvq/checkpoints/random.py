"""Checkpoints with random weights in the published layout, for demos and tests.

A video from one is noise, but finite, and the same for the same seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import prod
from os import PathLike
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from llvq.checkpoints.bundle import TEXT_FILES, TOKENIZER, TOKENIZER_FOLDERS, published_names
from llvq.checkpoints.specs import dit_specs, vae_specs
from llvq.checkpoints.text_names import TABLE, text_specs
from llvq.errors import CheckpointError
from llvq.models.config import (
    SELF_FORCING_1_3B,
    WAN21_VAE,
    DitConfig,
    ModelConfig,
    StreamConfig,
    TextConfig,
    VaeConfig,
)

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
# Small enough that an untrained network neither saturates nor grows from layer to layer.
MODULATION_GAIN = 0.1
BIAS_STD = 0.02


def tiny_config() -> ModelConfig:
    """A model of the LongLive-2.0 family that runs on a CPU in seconds: 128 x 192 pixels."""
    return ModelConfig(
        dit=DitConfig(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, text_dim=128, text_len=64),
        stream=StreamConfig(frames_per_chunk=2, window_frames=8, sink_frames=2),
        vae=VaeConfig(dim=16, dec_dim=32),
        text=TextConfig(
            vocab_size=320, dim=128, attn_dim=128, ffn_dim=256, num_heads=2, num_layers=2
        ),
        latent_hw=(8, 12),
    )


def tiny_self_forcing() -> ModelConfig:
    """A model of the Self-Forcing family of about the same size: 64 x 96 pixels."""
    tiny = tiny_config()
    return replace(
        tiny,
        dit=replace(tiny.dit, in_dim=16, out_dim=16),
        stream=replace(SELF_FORCING_1_3B.stream, window_frames=9),
        vae=replace(WAN21_VAE, dim=16, dec_dim=16),
    )


def write_random_checkpoint(folder: str | PathLike[str], config: ModelConfig, *, seed: int) -> Path:
    """Write denoiser, VAE, text encoder, tokenizer and their configs; return the denoiser's path.

    Parts that `config` does not have are not written. The same seed gives the same tensors.
    Errors: CheckpointError if the text vocabulary is too small for a byte-level tokenizer.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dit = folder / "model.pt"
    weights = {f"model.{k}": v for k, v in _random(dit_specs(config.dit), seed=seed).items()}
    torch.save({"generator": weights}, dit)
    height, width = config.pixel_hw
    _write_json(
        folder / "config.json",
        {
            "random_weights": True,
            "height": height,
            "width": width,
            "num_heads": config.dit.num_heads,
            "text_len": config.dit.text_len,
            "stream": asdict(config.stream),
        },
    )
    if config.vae is not None:
        _, vae_files = published_names(config.dit.in_dim)
        _write_vae(folder / vae_files[0], config.vae, seed=seed)
    if config.text is not None:
        weights = _random(text_specs(config.text), seed=seed)
        torch.save({TABLE.to_right(k): v for k, v in weights.items()}, folder / TEXT_FILES[0])
        _write_tokenizer(folder / TOKENIZER_FOLDERS[0] / TOKENIZER, config.text.vocab_size)
    return dit


def _write_vae(path: Path, config: VaeConfig, *, seed: int) -> None:
    torch.save(_random(vae_specs(config), seed=seed), path)
    statistics = {"latent_mean": config.latent_mean, "latent_std": config.latent_std}
    _write_json(path.parent / "vae_config.json", statistics)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _random(specs: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, torch.Tensor]:
    return {name: _tensor(name, shape, seed=seed) for name, shape in specs.items()}


def _tensor(name: str, shape: tuple[int, ...], *, seed: int) -> torch.Tensor:
    """bf16. Seeded by name, so that no tensor depends on which others are written."""
    parts = name.split(".")
    if parts[-1] == "gamma" or (parts[-1] == "weight" and "norm" in parts[-2]):
        return torch.ones(shape, dtype=torch.bfloat16)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    values = torch.randn(shape, generator=generator) * _deviation(parts, shape)
    return values.to(torch.bfloat16)


def _deviation(parts: list[str], shape: tuple[int, ...]) -> float:
    if parts[-1] == "bias":
        return BIAS_STD
    if parts[-1] == "modulation":
        return float(shape[-1] ** -0.5)
    if "shared" in parts:
        return 1.0
    fan_in = float(prod(shape[1:]) ** -0.5)
    if parts[0] == "time_projection":
        return MODULATION_GAIN * fan_in
    # UMT5 does not divide scores by sqrt(head dim); its queries are small instead.
    return fan_in**2 if parts[-3:-1] == ["SelfAttention", "q"] else fan_in


def _write_tokenizer(path: Path, vocab_size: int) -> None:
    """One token per byte, `</s>` at the end: knows every prompt and needs no training."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    if vocab_size < len(tokens):
        raise CheckpointError(
            f"a vocabulary of {vocab_size} tokens is too small",
            because=f"the byte-level tokenizer has {len(tokens)}",
            fix=f"set text.vocab_size to {len(tokens)} or more",
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
