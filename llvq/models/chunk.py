"""The whole video model for one chunk, as one module: what llvq captures.

It is the last denoising step of a chunk: velocity and the chunk's K and V from the noisy latent,
and the frames of x0 = latent - sigma * velocity, decoded both as the first chunk of a video and
as a later one. Cut by rate, this one graph gives every stage of the runtime.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llvq.capture import capture
from llvq.errors import RecipeError
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.models.stages import set_latent_statistics
from llvq.models.vae import WanVae, decode_state_shapes
from llvq.program import KvState, LoopState, Program
from llvq.runtime.contract import Rate

RATES: dict[str, Rate] = {
    "latent": "call",
    "timestep": "step",
    "positions": "chunk",
    "prompt_embeds": "prompt",
    "history_k": "chunk",
    "history_v": "chunk",
    "sigma": "emit",
    "decode_frames": "emit",
    "decode_state": "emit",
}


class ChunkModel(nn.Module):
    """Denoiser and VAE decoder of one chunk. Weights: `dit.*` and `vae.*`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dit = CausalWanDit(config.dit, relative_rope=config.stream.relative_rope)
        self.vae = WanVae(config.vae) if config.vae else None

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        positions: Tensor,
        prompt_embeds: Tensor,
        history_k: list[Tensor],
        history_v: list[Tensor],
        sigma: Tensor | None = None,
        decode_frames: Tensor | None = None,
        decode_state: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Shapes as in `CausalWanDit.forward`; sigma fp32 [B, C]; decode_state as the VAE's.

        decode_frames int64 [n] are the latent frames of the chunk that one call decodes.
        """
        velocity, keys, values = self.dit(
            latent, timestep, positions, prompt_embeds, history_k, history_v
        )
        outputs: dict[str, Any] = {"velocity": velocity, "keys": keys, "values": values}
        if self.vae is not None:
            assert sigma is not None and decode_frames is not None and decode_state is not None
            # The fp32 sigma promotes: no cast of latent or velocity that would run per call.
            x0 = latent - sigma[:, :, None, None, None] * velocity
            x0 = x0.index_select(1, decode_frames).to(latent.dtype).transpose(1, 2)
            for name, first in (("decode_first", True), ("decode", False)):
                frames, state = self.vae.decode(x0, decode_state, first=first)
                outputs[name] = {"frames": frames, "state": state}
        return outputs


def meta_model(config: ModelConfig, dtype: torch.dtype) -> ChunkModel:
    """The model on `meta`, its constants (latent statistics of the VAE) real."""
    with torch.device("meta"):
        model = ChunkModel(config).to(dtype)
    if model.vae is not None:
        set_latent_statistics(model.vae, config, dtype)
    return model


def example_inputs(
    config: ModelConfig, dtype: torch.dtype, latents_per_call: int = 1
) -> dict[str, Any]:
    """Meta inputs of a chunk at the full window."""
    dit, stream = config.dit, config.stream
    frames, (height, width) = stream.frames_per_chunk, config.latent_hw
    history = (stream.window_chunks - 1) * config.chunk_tokens
    kv_shape = (1, history, dit.num_heads, dit.head_dim)
    positions = stream.window_frames if stream.relative_rope else frames
    inputs: dict[str, Any] = {
        "latent": _meta(dtype, 1, frames, dit.in_dim, height, width),
        "timestep": _meta(torch.float32, 1, frames),
        "positions": _meta(torch.float64, positions),
        "prompt_embeds": _meta(dtype, 1, dit.text_len, dit.text_dim),
        "history_k": [_meta(dtype, *kv_shape) for _ in range(dit.num_layers)],
        "history_v": [_meta(dtype, *kv_shape) for _ in range(dit.num_layers)],
    }
    if config.vae is not None:
        inputs["sigma"] = _meta(torch.float32, 1, frames)
        inputs["decode_frames"] = _meta(torch.int64, latents_per_call)
        shapes = decode_state_shapes(config.vae, config.latent_hw)
        inputs["decode_state"] = [_meta(dtype, *shape) for shape in shapes]
    return inputs


def capture_chunk(
    config: ModelConfig, dtype: torch.dtype = torch.bfloat16, *, latents_per_call: int = 1
) -> Program:
    """Capture one chunk of the model. Takes seconds and no weight memory, at any size.

    One call of the decode stages takes `latents_per_call` latent frames of the chunk.
    """
    _check_divides(latents_per_call, config.stream.frames_per_chunk)
    inputs = example_inputs(config, dtype, latents_per_call)
    layers = range(config.dit.num_layers)
    kv = [KvState(i, f"history_k.{i}", f"history_v.{i}", f"keys.{i}", f"values.{i}")
          for i in layers]  # fmt: skip
    loops = [
        LoopState(f"decode_state.{i}", f"{stage}.state.{i}")
        for stage in ("decode_first", "decode")
        for i in range(len(inputs.get("decode_state", ())))
    ]
    rates = {name: rate for name, rate in RATES.items() if name in inputs}
    model = meta_model(config, dtype)
    program = capture(model, inputs, rates=rates, kv_states=kv, loop_states=loops)
    program.sink_chunks = config.stream.sink_chunks
    return program


def _check_divides(latents: int, frames: int) -> None:
    if latents < 1 or frames % latents:
        raise RecipeError(
            f"decode.latents_per_call = {latents} does not divide a chunk",
            because=f"a chunk has {frames} latent frames, and every call decodes as many",
            fix=f"choose one of {', '.join(str(n) for n in divisors(frames))}",
        )


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
