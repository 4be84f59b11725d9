"""Past latent frame 1024, where the reference's table of positions ends: what is held stays the
same, and the same seed gives the same bytes."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from llvq.compiler import compile_model, instantiate
from llvq.models.config import DitConfig, ModelConfig, StreamConfig, VaeConfig
from llvq.recipe import NVFP4, DecodeRecipe
from llvq.runtime.executable import Executable
from llvq.runtime.session import Chunk, Prompt, Session
from llvq.sources import DictSource

LATENTS = 32  # per chunk
CHUNKS = 34
LAST = 1024  # of the reference


@pytest.fixture(scope="module")
def model(make_weights: Callable[[ModelConfig], DictSource]) -> Executable:
    """One layer, 2 tokens per latent frame; all latents of a chunk are decoded at once."""
    dit = DitConfig(
        dim=64,
        ffn_dim=64,
        num_heads=2,
        num_layers=1,
        in_dim=8,
        out_dim=8,
        text_dim=32,
        text_len=5,
        freq_dim=32,
    )
    vae = VaeConfig(
        dim=8,
        dec_dim=8,
        z_dim=8,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        latent_mean=(0.0,) * 8,
        latent_std=(1.0,) * 8,
    )
    stream = StreamConfig(frames_per_chunk=LATENTS, window_frames=3 * LATENTS, sink_frames=LATENTS)
    config = ModelConfig(dit=dit, stream=stream, vae=vae, text=None, latent_hw=(2, 4))
    compiled = compile_model(config, replace(NVFP4, decode=DecodeRecipe(LATENTS)))
    return instantiate(compiled, make_weights(config))


def session_of(model: Executable, depth: int) -> Session:
    """Two shots: positions leap at the second."""
    facts, random = model.facts, torch.Generator().manual_seed(5)
    embeds = torch.randn(2, 1, facts.text_len, facts.text_dim, generator=random)
    first, second = (Prompt(e.to(facts.torch_dtype)) for e in embeds)
    script = [first] * 20 + [Prompt(second.embeds, scene_cut=True)] + [second] * (CHUNKS - 21)
    return Session(model, script, seed=11, steps=1, decode_depth=depth)


def digest(chunk: Chunk) -> str:
    assert chunk.frames is not None and chunk.latents.isfinite().all()
    both = (chunk.latents.view(torch.uint8), chunk.frames)
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in both)).hexdigest()


def held_bytes() -> int:
    """Of all tensors that anybody holds."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.timeout(120)
def test_past_the_last_frame_of_the_reference(model: Executable) -> None:
    first, held = [], []
    for chunk in session_of(model, depth=0):
        first.append(digest(chunk))
        if chunk.index % 7 == 5:
            held.append(held_bytes())
    assert len(first) * LATENTS > LAST + LATENTS and len(set(first)) == CHUNKS
    assert len(set(held)) == 1, "some memory grows"
    assert first == [digest(chunk) for chunk in session_of(model, depth=1)]
