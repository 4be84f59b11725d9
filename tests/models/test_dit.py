"""The denoiser: relative positions in plain words, published names, export without surprises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor, nn

from llvq.models.config import SELF_FORCING_1_3B, DitConfig, ModelConfig
from llvq.models.dit import CausalWanDit, RmsNorm, SelfAttention, gated, modulate, sinusoid
from llvq.models.rope import rope_tables

CONFIG = DitConfig(dim=32, num_heads=2, ffn_dim=64, num_layers=1, text_dim=16, freq_dim=16)
ROWS, COLUMNS, FRAMES = 2, 3, 2
TOKENS = ROWS * COLUMNS * FRAMES


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def layer(randn: Callable[..., Tensor]) -> SelfAttention:
    layer = SelfAttention(CONFIG, relative_rope=True).requires_grad_(False)
    for weight in layer.parameters():
        weight.copy_(randn(*weight.shape) / 4)
    return layer


def turned(x_NHD: Tensor, places: range) -> Tensor:
    """Rotate token (frame, row, column) of the frames in `places`, channel pair by channel pair."""
    pairs = torch.view_as_complex(x_NHD.double().unflatten(-1, (-1, 2)))
    half = x_NHD.shape[-1] // 2
    time, space = half - 2 * (half // 3), half // 3
    angles = []
    for frame in places:
        for row in range(ROWS):
            for column in range(COLUMNS):
                axes = ((frame, time), (row, space), (column, space))
                angles.append(
                    torch.cat([p * 10000.0 ** (-torch.arange(n).double() / n) for p, n in axes])
                )
    theta = torch.stack(angles)[:, None]
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(theta), theta)).flatten(-2)


def plain_relative_attention(layer: SelfAttention, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Raw K kept; the window numbered 0 .. n-1 and Q by its last frames; softmax spelled out."""

    def normed(norm: RmsNorm, y: Tensor) -> Tensor:
        y = y * (y.pow(2).mean(-1, keepdim=True) + CONFIG.eps).rsqrt() * norm.weight
        return y[0].unflatten(-1, (CONFIG.num_heads, -1))

    q, own_k = normed(layer.norm_q, layer.q(x)), normed(layer.norm_k, layer.k(x))
    own_v = layer.v(x)[0].unflatten(-1, (CONFIG.num_heads, -1))
    window_k, window_v = torch.cat([k[0], own_k]), torch.cat([v[0], own_v]).double()
    frames = window_k.shape[0] // (ROWS * COLUMNS)
    q, window_k = turned(q, range(frames - FRAMES, frames)), turned(window_k, range(frames))
    scores = torch.einsum("nhd,mhd->hnm", q, window_k) * CONFIG.head_dim**-0.5
    out = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), window_v).flatten(1).float()
    return layer.o(out)[None]


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_relative_positions_number_the_window(
    layer: SelfAttention, randn: Callable[..., Tensor], chunks: int
) -> None:
    x = randn(1, TOKENS, CONFIG.dim)
    k, v = (randn(1, chunks * TOKENS, CONFIG.num_heads, CONFIG.head_dim) for _ in range(2))
    places = torch.arange((chunks + 1) * FRAMES, dtype=torch.float64)
    table = rope_tables(places, ROWS, COLUMNS, CONFIG.head_dim)
    found, kept_k, kept_v = layer(x, table, (k, v))
    torch.testing.assert_close(
        found, plain_relative_attention(layer, x, k, v), atol=1e-5, rtol=1e-5
    )
    raw = layer.norm_k(layer.k(x)).unflatten(-1, (CONFIG.num_heads, -1))
    assert torch.equal(kept_k, raw)
    assert torch.equal(kept_v, layer.v(x).unflatten(-1, (CONFIG.num_heads, -1)))


def test_absolute_positions_keep_rotated_keys(randn: Callable[..., Tensor]) -> None:
    layer = SelfAttention(CONFIG, relative_rope=False).requires_grad_(False)
    x, empty = randn(1, TOKENS, CONFIG.dim), randn(1, 0, CONFIG.num_heads, CONFIG.head_dim)
    table = rope_tables(torch.arange(6, 8).double(), ROWS, COLUMNS, CONFIG.head_dim)
    _, kept, _ = layer(x, table, (empty, empty))
    raw = layer.norm_k(layer.k(x))[0].unflatten(-1, (CONFIG.num_heads, -1))
    torch.testing.assert_close(kept[0].double(), turned(raw, range(6, 8)), atol=1e-5, rtol=1e-5)


def test_rms_norm_is_torchs_without_weight_times_the_weight(randn: Callable[..., Tensor]) -> None:
    norm = RmsNorm(32, 1e-6).requires_grad_(False)
    norm.weight.copy_(randn(32))
    for dtype in (torch.bfloat16, torch.float32):
        x, cast = randn(2, 5, 32).to(dtype), norm.to(dtype)
        assert torch.equal(cast(x), F.rms_norm(x, (32,), eps=1e-6) * cast.weight)


def test_each_frame_has_its_own_modulation(randn: Callable[..., Tensor]) -> None:
    x, y, scale, shift = randn(1, 12, 8), randn(1, 12, 8), randn(1, 3, 8), randn(1, 3, 8)
    wide = [t.repeat_interleave(4, dim=1) for t in (scale, shift)]
    assert torch.equal(modulate(x, scale, shift), x * (1 + wide[0]) + wide[1])
    assert torch.equal(gated(x, y, scale), x + y * wide[0])


def test_sinusoid_starts_with_cosines() -> None:
    embedded = sinusoid(torch.tensor([[0.0, 500.0]]), 8)
    assert embedded.shape == (1, 2, 8) and embedded.dtype == torch.float64
    assert torch.equal(embedded[0, 0], torch.tensor([1.0] * 4 + [0.0] * 4).double())
    frequencies = 10000.0 ** (-torch.arange(4).double() / 4)
    torch.testing.assert_close(embedded[0, 1, 4:], (500 * frequencies).sin())


def test_patches_come_back_where_they_were(tiny_config: ModelConfig) -> None:
    """With an identity for a patch embedding, unpatchify undoes patchify."""
    config = tiny_config.dit
    model = CausalWanDit(config).requires_grad_(False)
    patch = config.in_dim * 4
    eye = torch.eye(patch).view(patch, config.in_dim, 1, 2, 2)
    model.patch_embedding = nn.Conv3d(config.in_dim, patch, (1, 2, 2), (1, 2, 2), bias=False)
    model.patch_embedding.weight = nn.Parameter(eye, requires_grad=False)
    latent = torch.arange(2 * 8 * 4 * 6).float().view(1, 2, 8, 4, 6)
    x, grid = model.patchify(latent)
    assert grid == (2, 2, 3) and x.shape == (1, 12, patch)
    channels_last = x.unflatten(-1, (config.in_dim, 4)).transpose(-1, -2).flatten(-2)
    assert torch.equal(model.unpatchify(channels_last, grid), latent)


def test_a_first_chunk_is_that_of_diffusers_wan21(randn: Callable[..., Tensor]) -> None:
    """Without history and at one timestep, a causal chunk of Wan2.1 is a video of Wan2.1."""
    sizes = {"dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "freq_dim": 32}
    config = replace(SELF_FORCING_1_3B.dit, **sizes, text_dim=24, text_len=7)
    ours = CausalWanDit(config).requires_grad_(False)
    for weight in ours.parameters():
        weight.copy_(randn(*weight.shape) * max(math.prod(weight.shape[1:]), 1) ** -0.5)
    theirs = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        text_dim=24,
        freq_dim=32,
        ffn_dim=96,
        num_layers=2,
    ).requires_grad_(False)
    published = {name: weight.clone() for name, weight in ours.state_dict().items()}
    theirs.load_state_dict(convert_wan_transformer_to_diffusers(published), strict=True)
    latent, prompt, timestep = randn(1, 3, 16, 4, 6), randn(1, 7, 24), 937.5
    empty = [torch.empty(1, 0, 2, 32)] * 2
    found, _, _ = ours(
        latent, torch.full((1, 3), timestep), torch.arange(3).double(), prompt, empty, empty
    )
    expected = theirs(latent.transpose(1, 2), torch.tensor([timestep]), prompt).sample
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-4, rtol=1e-4)


def test_names_are_the_published_ones(tiny_config: ModelConfig) -> None:
    with torch.device("meta"):
        names: Any = CausalWanDit(tiny_config.dit).state_dict()
    for name in (
        "patch_embedding.weight",
        "text_embedding.2.bias",
        "time_projection.1.weight",
        "blocks.1.self_attn.norm_q.weight",
        "blocks.0.cross_attn.o.bias",
        "blocks.0.norm3.weight",
        "blocks.0.ffn.2.weight",
        "blocks.0.modulation",
        "head.modulation",
        "head.head.weight",
    ):
        assert name in names
