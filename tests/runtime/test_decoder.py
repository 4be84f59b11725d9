"""The decoder: frames are pixels, chunks may be decoded in any number of calls, state is small."""

from __future__ import annotations

import torch

from llvq.runtime.decoder import Decoder
from llvq.runtime.denoiser import Denoised
from llvq.runtime.executable import Executable
from llvq.runtime.session import Prompt, Session
from tests.runtime.fakes import Recorder, random_chunk, shown, streamed


def chunk_of(executable: Executable, seed: int) -> Denoised:
    latent = random_chunk(executable, seed).latent
    return Denoised(latent, latent, torch.zeros_like(latent), torch.zeros(latent.shape[:2]))


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


def video_of(model: Executable, chunks: int) -> torch.Tensor:
    """What a streamed decoder should show: all latents at once."""
    facts, latents = model.facts, []
    for seed in range(chunks):
        chunk = random_chunk(model, seed)
        x0 = chunk.latent.float() - chunk.sigma[:, :, None, None, None] * chunk.velocity.float()
        latents += list(x0[0])
    return shown(latents, torch.zeros(facts.latent_hw), facts, 0)


def test_a_streamed_decoder_remembers_in_its_rings(executable: Executable) -> None:
    model = streamed(executable)
    for _ in range(2):  # rings are of one video
        decoder = Decoder(model)
        made = [decoder(random_chunk(model, seed)) for seed in range(4)]
        assert torch.equal(torch.cat(made), video_of(model, 4))
    assert int(decoder.decoded) == 4 * model.facts.frames_per_chunk


def test_a_streamed_decoder_is_recorded_and_its_rings_stay_where_they_are(
    executable: Executable,
) -> None:
    model, recorder = streamed(executable), Recorder()
    decoder = Decoder(model, record=recorder)
    (ring,) = decoder.state.values()
    made = [decoder(random_chunk(model, seed)) for seed in range(4)]
    assert torch.equal(torch.cat(made), video_of(model, 4))
    assert decoder.state == {"decode_state.0": ring} and ring.any()
    calls = 4 * model.facts.frames_per_chunk // model.facts.latents_per_decode
    assert (recorder.recorded, recorder.replayed) == (1, calls - 2)


def test_a_decoder_that_returns_its_state_is_not_recorded(executable: Executable) -> None:
    """It would be copied into place at every call: gigabytes."""
    recorder = Recorder()
    Decoder(executable, record=recorder)(random_chunk(executable, 0))
    assert recorder.recorded == 0
