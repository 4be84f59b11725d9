"""All chunks of a sample in one pass: [clean ; noisy], each noisy chunk after its clean history.

The same numbers as running llvq's denoiser chunk by chunk with a cache, which the test holds it to,
but in parallel and with gradients. Attention is per chunk over the chunks of its window: that is
the block-causal mask of LongLive-2.0's training, without the masked part being computed. Chunks
whose windows are as long as each other attend in one call, and chunks of one prompt read it in one.

Shapes: B batch, n clean chunks, m noisy ones, G chunks of both, C frames per chunk, N tokens per
chunk, H heads, D head dim, E = H*D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from examples.tiny_longlive.layouts import Layout, position_tensor
from llvq.models.dit import Attention, Block, CausalWanDit, attend, sinusoid
from llvq.models.rope import rope_tables


@dataclass(frozen=True)
class Pass:
    """What a pass over a layout computes: which entry each chunk is, sees and reads.

    `owners`: the layout's entry of each chunk, clean then noisy. `seen`: chunks that each attends
    to, itself last.
    """

    owners: tuple[int, ...]
    seen: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    clean: int

    @classmethod
    def over(cls, layout: Layout, copies: int = 1) -> Pass:
        """Every trained chunk is there `copies` times, after all the clean ones."""
        # Nothing attends to the last clean chunk.
        n = len(layout.chunks) - 1
        trained = range(layout.given, layout.given + layout.trained)
        owners = (*range(n), *(owner for _ in range(copies) for owner in trained))
        seen = tuple((*layout.windows[owner], index) for index, owner in enumerate(owners))
        assert all(chunk < n for chunks in seen for chunk in chunks[:-1])
        return cls(owners, seen, tuple(layout.prompts[owner] for owner in owners), n)


class TeacherForcing:
    """`dit` over whole samples."""

    def __init__(self, dit: CausalWanDit) -> None:
        self.dit = dit

    def __call__(
        self,
        clean: Tensor,
        noisy: Tensor,
        timestep: Tensor,
        embeds: Tensor,
        layout: Layout,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Velocities [B, m, C, channels, h, w] of the noisy chunks.

        clean [B, n + 1, C, channels, h, w], all chunks of the layout (the last may be anything);
        noisy [B, m, C, ...]: the trained chunks, once or several times over; timestep [B, m];
        embeds [B, 3, X, text_dim], one per prompt; positions: `position_tensor` of the layout, if
        it is on the device already.
        """
        velocity, _ = self.with_hidden(clean, noisy, timestep, embeds, layout, positions, depth=0)
        return velocity

    def with_hidden(
        self,
        clean: Tensor,
        noisy: Tensor,
        timestep: Tensor,
        embeds: Tensor,
        layout: Layout,
        positions: Tensor | None = None,
        *,
        depth: int,
    ) -> tuple[Tensor, Tensor]:
        """Also the noisy chunks' tokens [B, m * N, E] after the first `depth` blocks."""
        dit, (m, C) = self.dit, noisy.shape[1:3]
        plan = Pass.over(layout, m // layout.trained)
        latent = torch.cat([clean[:, : plan.clean], noisy], dim=1)
        x, grid = dit.patchify(latent.flatten(1, 2))
        times = torch.cat([timestep.new_zeros(len(clean), plan.clean), timestep], dim=1)
        # One modulation per chunk, since its frames are at the same noise level.
        time = dit.time_embedding(sinusoid(times, dit.config.freq_dim).to(x.dtype))
        time_BG6E = dit.time_projection(time).unflatten(2, (6, -1))
        text = dit.text_embedding(embeds)
        if positions is None:
            positions = position_tensor(layout, latent.device)
        starts = torch.stack([positions[owner] for owner in plan.owners])
        frames = starts[:, None] + torch.arange(C, dtype=torch.float64, device=latent.device)
        cos, sin = rope_tables(frames.flatten(), *grid[1:], dit.config.head_dim)
        rope = rope_factors(cos, sin, x.dtype)
        own = grid[1] * grid[2] * C * plan.clean
        hidden = x
        for index, block in enumerate(dit.blocks):
            x = self._block(block, x, time_BG6E, text, rope, plan)
            hidden = x if index + 1 == depth else hidden
        out = dit.head(x[:, own:], time[:, plan.clean :])
        velocity = dit.unpatchify(out, (m * C, *grid[1:])).unflatten(1, (m, C))
        return velocity, hidden[:, own:]

    def _block(
        self,
        block: Block,
        x: Tensor,
        time_BG6E: Tensor,
        text: Tensor,
        rope: tuple[Tensor, Tensor],
        plan: Pass,
    ) -> Tensor:
        parts = (block.modulation.unsqueeze(1) + time_BG6E).unbind(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        y = modulated(x, scale1, shift1, block.eps)
        attn, G = block.self_attn, len(plan.owners)
        q = normed_rope(attn.q(y), attn.norm_q.weight, *rope, attn.norm_q.eps)
        k = normed_rope(attn.k(y), attn.norm_k.weight, *rope, attn.norm_k.eps)
        v = attn.split_heads(attn.v(y))
        q, k, v = (part.unflatten(1, (G, -1)).unbind(1) for part in (q, k, v))
        x = gated(x, attn.o(_windowed(q, k, v, plan.seen)), gate1)
        cross = block.cross_attn
        q = _heads(cross, cross.q(block.norm3(x)), cross.norm_q)
        k, v = _heads(cross, cross.k(text), cross.norm_k), cross.split_heads(cross.v(text))
        x = x + cross.o(_prompted(q, k, v, plan.prompts))
        y = block.ffn(modulated(x, scale2, shift2, block.eps))
        return gated(x, y, gate2)


def modulated(x: Tensor, scale_BGE: Tensor, shift_BGE: Tensor, eps: float) -> Tensor:
    """Layer norm, then scale and shift per chunk."""
    y = F.layer_norm(x, (x.shape[-1],), eps=eps).unflatten(1, (scale_BGE.shape[1], -1))
    return torch.addcmul(shift_BGE.unsqueeze(2), y, 1 + scale_BGE.unsqueeze(2)).flatten(1, 2)


def gated(x: Tensor, y: Tensor, gate_BGE: Tensor) -> Tensor:
    """`x + gate * y`, one gate vector per chunk."""
    x, y = (part.unflatten(1, (gate_BGE.shape[1], -1)) for part in (x, y))
    return torch.addcmul(x, y, gate_BGE.unsqueeze(2)).flatten(1, 2)


def normed_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """RMS norm over all channels, heads split, and rotary positions: [B, tokens, H, D]."""
    x = F.rms_norm(x, (x.shape[-1],), weight, eps)
    return Rotate.apply(x.unflatten(-1, (-1, cos.shape[-1])), cos, sin)


def rope_factors(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[tokens, 1, D] that the channels, and the channels with pairs swapped, are multiplied by."""
    both = torch.stack([cos, cos], -1), torch.stack([-sin, sin], -1)
    whole, swapped = (part.flatten(1).to(dtype).unsqueeze(1) for part in both)
    return whole, swapped


class Rotate(torch.autograd.Function):
    """Rotary positions in the dtype of x, which moves a third of the bytes that fp32 does.

    The gradient is rotated the other way, and nothing of x is kept for it.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, _swapped(x), sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return torch.addcmul(grad * cos, _swapped(grad), sin, value=-1), None, None


def _swapped(x: Tensor) -> Tensor:
    """The two channels of every pair in each other's place."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _heads(attn: Attention, x: Tensor, norm: torch.nn.Module) -> Tensor:
    return attn.split_heads(F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps))


def _windowed(
    q: Sequence[Tensor], k: Sequence[Tensor], v: Sequence[Tensor], seen: Sequence[tuple[int, ...]]
) -> Tensor:
    """Each chunk of q [B, N, H, D] over the chunks of k and v that it sees: [B, G * N, E]."""
    outs: list[Tensor | None] = [None] * len(q)
    for length in sorted({len(chunks) for chunks in seen}):
        members = [index for index, chunks in enumerate(seen) if len(chunks) == length]
        every = [chunk for index in members for chunk in seen[index]]
        queries, keys, values = (
            torch.cat([part[i] for i in which], 1).unflatten(1, (len(members), -1)).flatten(0, 1)
            for part, which in ((q, members), (k, every), (v, every))
        )
        attended = attend(queries, keys, values).unflatten(0, (-1, len(members)))
        for index, out in zip(members, attended.unbind(1), strict=True):
            outs[index] = out
    return torch.cat([out for out in outs if out is not None], dim=1)


def _prompted(q: Tensor, k: Tensor, v: Tensor, prompts: Sequence[int]) -> Tensor:
    """q [B, G * N, H, D] over the text [B, 3, X, H, D]; each chunk reads its own prompt."""
    if len(set(prompts)) == 1:
        return attend(q, k[:, prompts[0]], v[:, prompts[0]])
    chunks = q.unflatten(1, (len(prompts), -1)).unbind(1)
    outs: list[Tensor | None] = [None] * len(prompts)
    for prompt in sorted(set(prompts)):
        members = [index for index, own in enumerate(prompts) if own == prompt]
        queries = torch.cat([chunks[i] for i in members], 1)
        attended = attend(queries, k[:, prompt], v[:, prompt]).unflatten(1, (len(members), -1))
        for index, out in zip(members, attended.unbind(1), strict=True):
            outs[index] = out
    return torch.cat([out for out in outs if out is not None], dim=1)
