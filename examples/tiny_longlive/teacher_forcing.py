"""All chunks of a sample in one pass: [clean ; noisy], each noisy chunk after its clean history.

The same numbers as running llvq's denoiser chunk by chunk with a cache, which the test holds it to,
but in parallel and with gradients. Attention is per chunk over the chunks of its window: that is
the block-causal mask of LongLive-2.0's training, without the masked part being computed.

Shapes: B batch, G chunks (clean, then noisy), N tokens per chunk, H heads, D head dim, E = H*D.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from examples.tiny_longlive.layouts import Layout
from llvq.models.dit import Block, CausalWanDit, attend, gated, layer_norm, modulate, sinusoid
from llvq.models.rope import apply_rope, rope_tables


class TeacherForcing:
    """`dit` over whole samples. With `compiled`, what is between attentions is fused."""

    def __init__(self, dit: CausalWanDit, *, compiled: bool = False) -> None:
        self.dit = dit
        self.enter: Callable = _enter
        self.leave: Callable = _leave
        if compiled:
            self.enter, self.leave = (torch.compile(f, dynamic=True) for f in (_enter, _leave))

    def __call__(
        self, clean: Tensor, noisy: Tensor, timestep: Tensor, embeds: Tensor, layout: Layout
    ) -> Tensor:
        """Velocities [B, m, C, channels, h, w] of the trained chunks.

        clean [B, n, C, channels, h, w], all chunks of the layout (the last may be anything);
        noisy [B, m, C, ...]; timestep [B, m]; embeds [B, 3, X, text_dim], one per prompt.
        """
        dit, (m, C) = self.dit, noisy.shape[1:3]
        # Nothing attends to the last clean chunk.
        n = len(layout.chunks) - 1
        latent = torch.cat([clean[:, :n], noisy], dim=1)
        x, grid = dit.patchify(latent.flatten(1, 2))
        times = torch.cat([timestep.new_zeros(len(clean), n), timestep], dim=1)
        times = times.repeat_interleave(C, dim=1)
        time = dit.time_embedding(sinusoid(times, dit.config.freq_dim).to(x.dtype))
        time_BC6E = dit.time_projection(time).unflatten(2, (6, -1))
        text = dit.text_embedding(embeds)
        owners = [*range(n), *range(layout.given, layout.given + m)]
        rope = self._rope([layout.positions[i] for i in owners], C, grid, latent.device)
        for block in dit.blocks:
            x = self._block(block, x, time_BC6E, text, rope, layout, owners)
        own = grid[1] * grid[2] * C * n
        out = dit.head(x[:, own:], time[:, n * C :])
        return dit.unpatchify(out, (m * C, *grid[1:])).unflatten(1, (m, C))

    def _rope(
        self, starts: list[float], C: int, grid: tuple[int, int, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        frames = torch.arange(C, dtype=torch.float64)
        positions = torch.tensor(starts, dtype=torch.float64)[:, None] + frames
        return rope_tables(positions.flatten().to(device), *grid[1:], self.dit.config.head_dim)

    def _block(
        self,
        block: Block,
        x: Tensor,
        time_BC6E: Tensor,
        text: Tensor,
        rope: tuple[Tensor, Tensor],
        layout: Layout,
        owners: list[int],
    ) -> Tensor:
        G, n = len(owners), len(layout.chunks) - 1
        q, k, v = (part.unflatten(1, (G, -1)).unbind(1)
                   for part in self.enter(block, x, time_BC6E, *rope))  # fmt: skip
        outs = []
        for index, owner in enumerate(owners):
            seen = [*layout.windows[owner], index]
            assert all(entry < n for entry in seen[:-1])
            keys, values = (torch.cat([part[i] for i in seen], dim=1) for part in (k, v))
            outs.append(attend(q[index], keys, values))
        prompts = torch.tensor([layout.prompts[owner] for owner in owners], device=x.device)
        return self.leave(block, x, torch.cat(outs, dim=1), time_BC6E, text, prompts)


def _enter(
    block: Block, x: Tensor, time_BC6E: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k (both rotated) and v [B, G*N, H, D] of the self-attention."""
    shift, scale = (block.modulation.unsqueeze(1) + time_BC6E).unbind(2)[:2]
    y = modulate(layer_norm(x, block.eps), scale, shift)
    q, k, v = block.self_attn.project(y, y)
    return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v


def _leave(
    block: Block, x: Tensor, attended: Tensor, time_BC6E: Tensor, text: Tensor, prompts: Tensor
) -> Tensor:
    """Everything after self-attention: each chunk reads its own prompt."""
    parts = (block.modulation.unsqueeze(1) + time_BC6E).unbind(2)
    gate1, shift2, scale2, gate2 = parts[2:]
    x = gated(x, block.self_attn.o(attended), gate1)
    cross, B, G = block.cross_attn, x.shape[0], prompts.shape[0]
    q = cross.split_heads(cross.norm_q(cross.q(block.norm3(x))))
    k = cross.split_heads(cross.norm_k(cross.k(text)))
    v = cross.split_heads(cross.v(text))
    k, v = (part.index_select(1, prompts).flatten(0, 1) for part in (k, v))
    y = attend(q.unflatten(1, (G, -1)).flatten(0, 1), k, v)
    x = x + cross.o(y.unflatten(0, (B, G)).flatten(1, 2))
    y = block.ffn(modulate(layer_norm(x, block.eps), scale2, shift2))
    return gated(x, y, gate2)
