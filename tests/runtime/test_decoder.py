"""The decoder: frames are pixels, chunks may be decoded in any number of calls, state is small."""

from __future__ import annotations

import torch

from llvq.runtime.decoder import Decoder
from llvq.runtime.denoiser import Denoised
from llvq.runtime.executable import Executable
from llvq.runtime.session import Prompt, Session


def chunk_of(executable: Executable, seed: int) -> Denoised:
    facts = executable.facts
    shape = (1, facts.frames_per_chunk, facts.latent_channels, *facts.latent_hw)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    latent = latent.to(facts.torch_dtype)
    return Denoised(latent, latent, torch.zeros_like(latent), torch.zeros(shape[:2]))


def test_a_chunk_has_four_frames_per_latent_and_the_first_three_less(
    executable: Executable,
) -> None:
    decoder, frames = Decoder(executable), executable.facts.frames_per_chunk
    counts = [len(decoder(chunk_of(executable, seed))) for seed in range(3)]
    assert counts == [4 * frames - 3, 4 * frames, 4 * frames]


def test_the_velocity_is_followed_to_x0(executable: Executable) -> None:
    """latent - sigma * velocity is what is decoded, frame by frame of the chunk."""
    plain = chunk_of(executable, 1)
    velocity, sigma = torch.ones_like(plain.x0), torch.full_like(plain.sigma, 0.5)
    moved = Denoised(plain.x0, plain.x0 + 0.5, velocity, sigma)
    found, wanted = Decoder(executable)(moved), Decoder(executable)(plain)
    assert (found.float() - wanted.float()).abs().mean() < 2


def test_frames_are_pixels(executable: Executable) -> None:
    facts = executable.facts
    embeds = torch.zeros(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype)
    chunk = next(iter(Session(executable, [Prompt(embeds)])))
    assert chunk.frames is not None and chunk.frames.dtype == torch.uint8


def test_state_does_not_keep_feature_maps_alive(executable: Executable) -> None:
    """The state lives as long as the video: a view would hold the whole map it was cut from."""
    for name in ("decode_first", "decode"):
        stage = executable.stage(name)
        values = {s.name: torch.zeros(s.sizes, dtype=s.dtype) for s in stage.inputs}
        outputs = stage(values)
        state = [tensor for output, tensor in outputs.items() if ".state." in output]
        assert state
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in state)
