"""The causal Wan denoiser of LongLive-2.0, written to be captured by `torch.export`.

One call denoises one chunk. Everything that changes between calls is an argument: the temporal
positions, the timesteps and the history of keys and values. Parameter names are the published
ones, so a checkpoint's key set is this module's `state_dict`.

Shapes: B batch, C frames of the chunk, S tokens per frame, N = C*S, M tokens of history,
H heads, D head dim, E = H*D, X text length.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.models.config import DitConfig
from llvq.models.rope import apply_rope, rope_tables


class RmsNorm(nn.Module):
    """Root-mean-square norm over all channels: fp32 statistics, rounded before the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x_fp32 = x.float()
        scale = torch.rsqrt(x_fp32.pow(2).mean(-1, keepdim=True) + self.eps)
        return (x_fp32 * scale).to(x.dtype) * self.weight


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters: fp32 statistics, result in the dtype of `x`."""
    return F.layer_norm(x.float(), (x.shape[-1],), eps=eps).to(x.dtype)


def modulate(x_BNE: Tensor, scale_BCE: Tensor, shift_BCE: Tensor) -> Tensor:
    """Scale and shift the tokens of each frame by that frame's vectors."""
    frames = scale_BCE.shape[1]
    x_BCSE = x_BNE.unflatten(1, (frames, -1))
    return (x_BCSE * (1 + scale_BCE.unsqueeze(2)) + shift_BCE.unsqueeze(2)).flatten(1, 2)


def gated(x_BNE: Tensor, y_BNE: Tensor, gate_BCE: Tensor) -> Tensor:
    """`x + gate * y`, one gate vector per frame."""
    frames = gate_BCE.shape[1]
    y_BCSE = y_BNE.unflatten(1, (frames, -1)) * gate_BCE.unsqueeze(2)
    return x_BNE + y_BCSE.flatten(1, 2)


def attend(q_BNHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor) -> Tensor:
    """Softmax attention without a mask; heads merged in the result [B, N, H*D]."""
    q, k, v = (t.transpose(1, 2) for t in (q_BNHD, k_BMHD, v_BMHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections and qk-norm shared by self- and cross-attention."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RmsNorm(config.dim, config.eps)
        self.norm_k = RmsNorm(config.dim, config.eps)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.split_heads(self.norm_q(self.q(x)))
        k = self.split_heads(self.norm_k(self.k(context)))
        return q, k, self.split_heads(self.v(context))


class SelfAttention(Attention):
    """Attention of a chunk over its history and itself, with rotary positions.

    Absolute positions: K is rotated, then kept. Relative positions: raw K is kept and the whole
    window is rotated by its place in the window at each use.
    """

    def __init__(self, config: DitConfig, *, relative_rope: bool) -> None:
        super().__init__(config)
        self.relative_rope = relative_rope

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], history: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output [B, N, E] and the chunk's own K and V [B, N, H, D] to keep."""
        q, k, v = self.project(x, x)
        cos, sin = rope
        if self.relative_rope:
            own = q.shape[1]
            q = apply_rope(q, cos[-own:], sin[-own:])
            window_k = apply_rope(torch.cat([history[0], k], dim=1), cos, sin)
        else:
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
            window_k = torch.cat([history[0], k], dim=1)
        window_v = torch.cat([history[1], v], dim=1)
        return self.o(attend(q, window_k, window_v)), k, v


class CrossAttention(Attention):
    """Attention of every token over all text positions, padding included."""

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return self.o(attend(*self.project(x, text)))


class Block(nn.Module):
    def __init__(self, config: DitConfig, *, relative_rope: bool) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attn = SelfAttention(config, relative_rope=relative_rope)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )

    def forward(
        self,
        x: Tensor,
        time_BC6E: Tensor,
        text: Tensor,
        rope: tuple[Tensor, Tensor],
        history: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = (self.modulation.unsqueeze(1) + time_BC6E).unbind(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        y = modulate(layer_norm(x, self.eps), scale1, shift1)
        y, k, v = self.self_attn(y, rope, history)
        x = gated(x, y, gate1)
        x = x + self.cross_attn(self.norm3(x), text)
        y = self.ffn(modulate(layer_norm(x, self.eps), scale2, shift2))
        return gated(x, y, gate2), k, v


class Head(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.eps = config.eps
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.head = nn.Linear(config.dim, config.out_dim * patch)

    def forward(self, x: Tensor, time_BCE: Tensor) -> Tensor:
        shift, scale = (self.modulation.unsqueeze(1) + time_BCE.unsqueeze(2)).unbind(2)
        return self.head(modulate(layer_norm(x, self.eps), scale, shift))


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps in float64: [..., dim], cosines first."""
    half = dim // 2
    index = torch.arange(half, dtype=torch.float64, device=timestep.device)
    angle = timestep.double().unsqueeze(-1) * torch.pow(10000.0, -index / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class CausalWanDit(nn.Module):
    """The denoiser. `forward` gives the velocity of one chunk and the chunk's K and V per layer."""

    def __init__(self, config: DitConfig, *, relative_rope: bool = False) -> None:
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_dim, config.dim, patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.dim, config.dim),
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList(
            Block(config, relative_rope=relative_rope) for _ in range(config.num_layers)
        )
        self.head = Head(config)

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        positions: Tensor,
        prompt_embeds: Tensor,
        history_k: Iterable[Tensor],
        history_v: Iterable[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Denoise one chunk.

        latent [B, C, in_dim, h, w]; timestep [B, C]; positions fp64 temporal positions, [C] of the
        chunk, or [window frames] of the window so far in relative mode; prompt_embeds
        [B, X, text_dim]; history_k and history_v: L tensors [B, M, H, D].
        """
        x, grid = self.patchify(latent)
        time = self.time_embedding(sinusoid(timestep, self.config.freq_dim).to(x.dtype))
        time_BC6E = self.time_projection(time).unflatten(2, (6, -1))
        text = self.text_embedding(prompt_embeds)
        rope = rope_tables(positions, grid[1], grid[2], self.config.head_dim)
        keys, values = [], []
        for block, *history in zip(self.blocks, history_k, history_v, strict=True):
            x, k, v = block(x, time_BC6E, text, rope, tuple(history))
            keys.append(k)
            values.append(v)
        return self.unpatchify(self.head(x, time), grid), keys, values

    def patchify(self, latent: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Latent frames to tokens [B, N, E], row-major over (frame, row, column)."""
        x = self.patch_embedding(latent.transpose(1, 2))
        frames, rows, columns = x.shape[2:]
        return x.flatten(2).transpose(1, 2), (frames, rows, columns)

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Tokens [B, N, pt*ph*pw*out_dim] back to latent frames [B, C, out_dim, h, w]."""
        frames, rows, columns = grid
        pt, ph, pw = self.config.patch_size
        x = x.view(-1, frames, rows, columns, pt, ph, pw, self.config.out_dim)
        x = x.permute(0, 1, 4, 7, 2, 5, 3, 6)
        return x.reshape(-1, frames * pt, self.config.out_dim, rows * ph, columns * pw)
