"""One video: order, determinism at every depth, cancel, prompt change, failures in the decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llvq.errors import SessionError
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.session import Chunk, Prompt, Session


def prompt(executable: Executable, seed: int = 0, *, scene_cut: bool = False) -> Prompt:
    facts = executable.facts
    random = torch.Generator().manual_seed(seed)
    embeds = torch.randn(1, facts.text_len, facts.text_dim, generator=random)
    return Prompt(embeds.to(facts.torch_dtype), scene_cut)


def same(a: list[Chunk], b: list[Chunk]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.latents, y.latents) and torch.equal(x.frames, y.frames)
        for x, y in zip(a, b, strict=True)
    )


def test_chunks_come_in_order_with_their_frames(executable: Executable) -> None:
    chunks = list(Session(executable, [prompt(executable)] * 3))
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    height, width = executable.facts.pixel_hw
    assert [tuple(c.frames.shape) for c in chunks] == [
        (5, height, width, 3),
        (8, height, width, 3),
        (8, height, width, 3),
    ]


@pytest.mark.parametrize("depth", [1, 3])
def test_output_does_not_depend_on_the_depth_of_the_decode_stage(
    executable: Executable, depth: int
) -> None:
    script = [prompt(executable)] * 4
    serial = list(Session(executable, script, seed=7, decode_depth=0))
    assert same(serial, list(Session(executable, script, seed=7, decode_depth=depth)))


def test_the_seed_decides(executable: Executable) -> None:
    script = [prompt(executable)] * 2
    first = list(Session(executable, script, seed=1))
    assert same(first, list(Session(executable, script, seed=1)))
    assert not same(first, list(Session(executable, script, seed=2)))


def test_a_longer_video_begins_like_a_shorter_one(executable: Executable) -> None:
    short = list(Session(executable, [prompt(executable)] * 2, seed=3))
    long = list(Session(executable, [prompt(executable)] * 4, seed=3))
    assert same(short, long[:2])


def test_given_noise_replaces_the_seed(executable: Executable) -> None:
    facts = executable.facts
    noise = torch.randn(1, 4, facts.latent_channels, *facts.latent_hw)
    runs = [
        list(Session(executable, [prompt(executable)] * 2, seed=seed, noise=noise))
        for seed in (0, 1)
    ]
    assert same(*runs)


def test_noise_of_the_wrong_length_is_refused(executable: Executable) -> None:
    facts = executable.facts
    noise = torch.randn(1, 3, facts.latent_channels, *facts.latent_hw)
    with pytest.raises(SessionError, match="noise has shape"):
        Session(executable, [prompt(executable)] * 2, noise=noise)


def test_latents_only_has_no_frames(executable: Executable) -> None:
    chunks = list(Session(executable, [prompt(executable)] * 2, latents_only=True))
    assert [chunk.frames for chunk in chunks] == [None, None]


def test_cancel_ends_within_one_chunk(executable: Executable) -> None:
    session = Session(executable, [prompt(executable)] * 50)
    seen = []
    for chunk in session:
        seen.append(chunk.index)
        session.cancel()
    assert len(seen) <= 3


def test_a_prompt_changes_at_the_next_chunk(executable: Executable) -> None:
    script, other = [prompt(executable)] * 4, prompt(executable, seed=9)
    plain = list(Session(executable, script, decode_depth=0))
    session = Session(executable, script, decode_depth=0)
    changed = []
    for chunk in session:
        changed.append(chunk)
        if chunk.index == 1:
            assert session.set_prompt(other) == 2
    assert same(plain[:2], changed[:2])
    assert not torch.equal(plain[2].latents, changed[2].latents)


def test_a_scene_cut_moves_the_positions(executable: Executable) -> None:
    script = [prompt(executable)] * 3
    cut = [script[0], prompt(executable, scene_cut=True), script[2]]
    plain, moved = (list(Session(executable, s, latents_only=True)) for s in (script, cut))
    assert torch.equal(plain[0].latents, moved[0].latents)
    assert not torch.equal(plain[1].latents, moved[1].latents)


def test_an_image_is_kept_as_the_first_frame(executable: Executable) -> None:
    facts = executable.facts
    image = torch.randn(1, 1, facts.latent_channels, *facts.latent_hw).to(facts.torch_dtype)
    chunk = next(
        iter(Session(executable, [prompt(executable)], image_latent=image, latents_only=True))
    )
    assert torch.equal(chunk.latents[:, :1], image)


def test_an_error_in_the_decoder_reaches_the_consumer(executable: Executable) -> None:
    def broken(*_: torch.Tensor) -> None:
        raise MemoryError("out of memory in the decoder")

    stages = dict(executable.stages)
    later = stages["decode"]
    stages["decode"] = CompiledStage("decode", broken, later.inputs, later.outputs)  # type: ignore[arg-type]
    session = Session(replace(executable, stages=stages), [prompt(executable)] * 6)
    with pytest.raises(SessionError) as caught:
        list(session)
    assert isinstance(caught.value.__cause__, MemoryError)


def test_an_empty_script_is_refused(executable: Executable) -> None:
    with pytest.raises(SessionError, match="script is empty"):
        Session(executable, [])


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_a_seed_of_more_than_64_bits_is_refused(executable: Executable, seed: int) -> None:
    with pytest.raises(SessionError, match="is too large"):
        Session(executable, [prompt(executable)], seed=seed)


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63)])
def test_every_seed_of_64_bits_is_taken(executable: Executable, seed: int) -> None:
    Session(executable, [prompt(executable)], seed=seed)
