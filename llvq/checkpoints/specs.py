"""Name and shape of every tensor of a published denoiser and VAE."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from llvq.models.config import DitConfig, VaeConfig
from llvq.models.vae import WanVae
from llvq.sources import TensorSpec


def in_bf16(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(torch.bfloat16, shape) for name, shape in shapes.items()}


def vae_specs(config: VaeConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the VAE's state dict. Nothing is allocated."""
    with torch.device("meta"):
        model = WanVae(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def dit_specs(config: DitConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the denoiser's state dict."""
    dim = config.dim
    specs: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, config.in_dim, *config.patch_size),
        "patch_embedding.bias": (dim,),
        **_linear("text_embedding.0", dim, config.text_dim),
        **_linear("text_embedding.2", dim, dim),
        **_linear("time_embedding.0", dim, config.freq_dim),
        **_linear("time_embedding.2", dim, dim),
        **_linear("time_projection.1", 6 * dim, dim),
    }
    for index in range(config.num_layers):
        specs |= {f"blocks.{index}.{k}": v for k, v in _block(dim, config.ffn_dim).items()}
    specs["head.modulation"] = (1, 2, dim)
    return specs | _linear("head.head", config.out_dim * prod(config.patch_size), dim)


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _block(dim: int, ffn_dim: int) -> dict[str, tuple[int, ...]]:
    specs: dict[str, tuple[int, ...]] = {"modulation": (1, 6, dim)}
    for attention in ("self_attn", "cross_attn"):
        for projection in ("q", "k", "v", "o"):
            specs |= _linear(f"{attention}.{projection}", dim, dim)
        specs |= {f"{attention}.norm_{side}.weight": (dim,) for side in ("q", "k")}
    specs |= {"norm3.weight": (dim,), "norm3.bias": (dim,)}
    return specs | _linear("ffn.0", ffn_dim, dim) | _linear("ffn.2", dim, ffn_dim)
