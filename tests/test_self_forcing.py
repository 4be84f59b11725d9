"""Self-Forcing and LongLive-1, end to end: Wan2.1's latents and VAE, chunks of 3, re-noising.

The oracle of a rollout is the published loop in plain words, on the eager denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llvq.backends.base import CPU
from llvq.box import export_box, write_program
from llvq.checkpoints.model import open_model
from llvq.checkpoints.random import tiny_config, tiny_self_forcing, write_random_checkpoint
from llvq.compiler import Compiled, compile_model, instantiate
from llvq.errors import CheckpointError, SessionError
from llvq.models.config import LONGLIVE1_1_3B, SELF_FORCING_1_3B, ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.plan import plan_compiled
from llvq.recipe import BF16, NVFP4
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.executable import Executable
from llvq.runtime.generate import Request, open_session
from llvq.runtime.load import open_checked
from llvq.runtime.session import Chunk, Prompt, Session, schedule_of
from llvq.sources import DictSource

FP32 = replace(BF16, dtype="float32")
CHUNKS = 5


def small(config: ModelConfig) -> ModelConfig:
    """A model of the family that compiles in seconds: 18 tokens per chunk."""
    assert config.vae is not None and config.text is not None
    sizes = {"dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 2, "text_len": 32}
    return replace(
        config,
        dit=replace(config.dit, **sizes),
        vae=replace(config.vae, dim=4, dec_dim=4, num_res_blocks=1),
        text=replace(config.text, num_layers=1),
        latent_hw=(4, 6),
    )


CONFIG = small(tiny_self_forcing())
# Three chunks of history, with and without one that stays: both roll within five chunks.
STREAMS = {
    "self-forcing": replace(SELF_FORCING_1_3B.stream, window_frames=9),
    "longlive-1": replace(LONGLIVE1_1_3B.stream, window_frames=9),
}


def plain_rollout(
    config: ModelConfig, model: CausalWanDit, noises: Tensor, prompt: Tensor
) -> list[Tensor]:
    """x0 of every chunk; noises [chunks, steps, 1, C, z, h, w]. All chunks ever made are kept, and
    a window of them is attended to: those that stay, then the newest."""
    levels = [5 * t / (1 + 4 * t) for t in (1.0, 0.75, 0.5, 0.25)]
    room, sink = config.stream.window_frames // 3 - 1, config.stream.sink_frames // 3
    finished: list[Tensor] = []
    kept: list[tuple[list[Tensor], list[Tensor]]] = []
    for index, (latent, *fresh) in enumerate(noises):
        seen = kept if len(kept) <= room else kept[:sink] + kept[sink - room :]
        history = [joined([chunk[side] for chunk in seen], config) for side in (0, 1)]
        positions = 3.0 * index + torch.arange(3).double()
        for step, sigma in enumerate(levels):
            timestep = torch.full((1, 3), 1000 * sigma)
            velocity, _, _ = model(latent, timestep, positions, prompt, *history)
            x0 = latent - sigma * velocity
            if step < 3:
                latent = (1 - levels[step + 1]) * x0 + levels[step + 1] * fresh[step]
        _, keys, values = model(x0, torch.zeros(1, 3), positions, prompt, *history)
        kept.append((keys, values))
        finished.append(x0)
    return finished


def joined(chunks: Sequence[list[Tensor]], config: ModelConfig) -> list[Tensor]:
    """K or V of several chunks, layer by layer: [1, tokens, H, D] each."""
    empty = torch.empty(1, 0, config.dit.num_heads, config.dit.head_dim)
    layers = range(config.dit.num_layers)
    return [torch.cat([empty, *(chunk[layer] for chunk in chunks)], dim=1) for layer in layers]


@pytest.mark.parametrize("stream", STREAMS)
def test_compiled_is_the_published_loop(
    stream: str, make_weights: Callable[[ModelConfig], DictSource]
) -> None:
    config = replace(CONFIG, stream=STREAMS[stream], vae=None, text=None)
    weights, compiled = make_weights(config), compile_model(config, FP32)
    generator = torch.Generator().manual_seed(4)
    noises = torch.randn(CHUNKS, 4, 1, 3, 16, 4, 6, generator=generator)
    prompt = torch.randn(1, 32, 128, generator=generator)
    denoiser = Denoiser(instantiate(compiled, weights), schedule_of(compiled.facts))
    found = [
        denoiser.run(index, noise, prompt, scene_cut=False, image=None, fresh=fresh)
        for index, (noise, *fresh) in enumerate(noises)
    ]
    eager = CausalWanDit(config.dit)
    eager.load_state_dict({n.removeprefix("dit."): weights.read(n) for n in weights.names()})
    with torch.inference_mode():
        expected = plain_rollout(config, eager, noises, prompt)
    for chunk, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        worst = (ours.x0 - theirs).abs().max() / theirs.abs().max()
        assert worst <= 1e-5, f"chunk {chunk} is off by {worst}"
        again = ours.latent - ours.sigma[:, :, None, None, None] * ours.velocity
        torch.testing.assert_close(again, ours.x0)  # what the decode stage makes of it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), CONFIG, seed=0)


@pytest.fixture(scope="module")
def compiled(checkpoint: Path) -> Compiled:
    return compile_model(open_model(checkpoint).config, NVFP4)


@pytest.fixture(scope="module")
def box(checkpoint: Path, compiled: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantized, exported."""
    folder, opened = tmp_path_factory.mktemp("box"), open_model(checkpoint)
    program = folder / "model.nvfp4"
    write_program(compiled, opened.source, program, tokenizer=opened.bundle.tokenizer)
    export_box(open_checked(program), CPU, folder / "model.llvq")
    return folder / "model.llvq"


@pytest.fixture(scope="module")
def model(checkpoint: Path, compiled: Compiled) -> Executable:
    return instantiate(compiled, open_model(checkpoint).source)


def script(model: Executable, chunks: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, model.facts.text_len, model.facts.text_dim, generator=generator)
    return [Prompt(embeds.to(model.facts.torch_dtype))] * chunks


def same(a: list[Chunk], b: list[Chunk]) -> bool:
    return all(torch.equal(x.latents, y.latents) for x, y in zip(a, b, strict=True))


def test_the_checkpoint_is_recognised(checkpoint: Path) -> None:
    opened = open_model(checkpoint)
    assert opened.config == CONFIG
    assert not any("streamed as" in note for note in opened.notes)  # config.json says how
    assert opened.bundle.vae is not None and opened.bundle.vae.name == "Wan2.1_VAE.pth"
    (checkpoint.parent / "config.json").rename(checkpoint.parent / "away.json")
    try:
        bare = open_model(checkpoint, num_heads=2)
    finally:
        (checkpoint.parent / "away.json").rename(checkpoint.parent / "config.json")
    assert bare.config.stream == SELF_FORCING_1_3B.stream
    assert bare.config.pixel_hw == (480, 832)
    assert any("streamed as Self-Forcing" in note for note in bare.notes)


def test_a_prompt_becomes_frames(box: Path) -> None:
    """16 frames per second: 33 of them are 2 seconds and one frame, in three chunks."""
    opened = open_session(box, Request(prompts=("a red kite",), seconds=33 / 16))
    chunks = list(opened.session)
    shapes = [tuple(chunk.frames.shape) for chunk in chunks if chunk.frames is not None]
    assert shapes == [(9, 32, 48, 3), (12, 32, 48, 3), (12, 32, 48, 3)]
    assert all(chunk.latents.isfinite().all() for chunk in chunks)


def test_the_seed_decides_all_of_the_noise(model: Executable) -> None:
    first = list(Session(model, script(model, 3), seed=1))
    assert same(first, list(Session(model, script(model, 3), seed=1, decode_depth=0)))
    assert not same(first, list(Session(model, script(model, 3), seed=2)))
    facts = model.facts
    noise = torch.randn(1, 9, facts.latent_channels, *facts.latent_hw)
    given = [list(Session(model, script(model, 3), seed=s, noise=noise)) for s in (1, 1, 2)]
    assert same(given[0], given[1])
    assert not same(given[0], given[2])  # what is added on the way still comes from the seed


def test_a_video_that_is_cancelled_is_the_start_of_the_whole_one(model: Executable) -> None:
    whole = list(Session(model, script(model, 4), seed=3))
    session = Session(model, script(model, 4), seed=3, decode_depth=0)
    seen = []
    for chunk in session:
        seen.append(chunk)
        if chunk.index == 1:
            session.cancel()
    assert len(seen) == 2 and same(seen, whole[:2])
    assert same(list(Session(model, script(model, 2), seed=3)), whole[:2])


def test_another_number_of_steps_is_refused(box: Path) -> None:
    with pytest.raises(SessionError, match="2 sampling steps for 4 timesteps") as caught:
        open_session(box, Request(prompts=("a red kite",), steps=2))
    assert caught.value.because == "the model is called once at each of 1000, 750, 500, 250"
    assert caught.value.fix == "use 4 steps"


def test_a_model_of_text_alone_takes_no_image(box: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="does not begin a video at an image") as caught:
        open_session(box, Request(prompts=("a red kite",), image=tmp_path / "red.png"))
    assert caught.value.fix == "leave out --image"


def test_a_plan_counts_its_window(compiled: Compiled) -> None:
    plan = plan_compiled(compiled, target="cpu")
    assert plan.kv is not None and plan.kv.slots == 3
    runs = {stage.name: stage.runs for stage in plan.stages}
    assert (runs["denoise"], runs["decode"]) == ("4 times per chunk", "3 times per chunk")


def test_the_vae_of_the_other_family_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = write_random_checkpoint(tmp_path, replace(small(tiny_config()), text=None), seed=0)
    with pytest.raises(CheckpointError, match="the VAE does not belong") as caught:
        open_model(checkpoint, vae=other.parent / "Wan2.2_VAE.pth")
    assert caught.value.because == "it has 48 latent channels, the denoiser takes 16"
    with pytest.raises(CheckpointError, match="the VAE does not belong"):
        open_model(other, vae=checkpoint.parent / "Wan2.1_VAE.pth")
