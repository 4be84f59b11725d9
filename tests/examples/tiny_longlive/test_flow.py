"""Training samples in one pass: copies at noise levels of their own, and where tokens are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from examples.tiny_longlive import data
from examples.tiny_longlive.flow import (
    PROMPT_DROP,
    Denoiser,
    Places,
    drop_words,
    no_words,
    places_loss,
)
from examples.tiny_longlive.latents import Samples
from examples.tiny_longlive.layouts import layout, position_tensor
from examples.tiny_longlive.model import new_dit, new_text_encoder, tiny_longlive
from examples.tiny_longlive.teacher_forcing import TeacherForcing
from examples.tiny_longlive.validation import SIGMAS, held_out
from examples.tiny_longlive.weights import Masters
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit


def toy() -> ModelConfig:
    config = tiny_longlive()
    assert config.text is not None
    return replace(
        config,
        dit=replace(config.dit, dim=64, ffn_dim=64, num_heads=1, num_layers=2, text_dim=32,
                    in_dim=8, out_dim=8),
        text=replace(config.text, dim=32, attn_dim=32, ffn_dim=32, num_heads=1, num_layers=1),
        stream=replace(config.stream, frames_per_chunk=2, window_frames=8, sink_frames=2),
        latent_hw=(8, 8),
    )  # fmt: skip


def test_copies_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    config = toy()
    dit, chosen = CausalWanDit(config.dit), layout(config.stream, 0, 3, 1)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    clean, embeds = torch.randn(2, 3, 2, 8, 8, 8), torch.randn(2, 3, 64, 32)
    noisy, times = torch.randn(2, 6, 2, 8, 8, 8), torch.tensor([[900.0, 5, 300, 70, 600, 40]] * 2)
    model = TeacherForcing(dit)
    together = model(clean, noisy, times, embeds, chosen)
    for at in (0, 3):
        alone = model(clean, noisy[:, at : at + 3], times[:, at : at + 3], embeds, chosen)
        assert torch.allclose(together[:, at : at + 3], alone, atol=1e-5)


def test_where_a_token_is_can_be_told_from_noise() -> None:
    torch.manual_seed(0)
    config = toy()
    chosen = layout(config.stream, 0, 1)
    model = Denoiser(TeacherForcing(new_dit(config)), new_text_encoder(config), Places(config))
    masters = Masters(model.modules, rate=4e-3, muon=True)
    ids, mask = torch.full((8, 3, 64), 5), torch.ones(8, 3, 64, dtype=torch.int64)
    inputs = torch.randn(8, 1, 2, 8, 8, 8), ids, mask, position_tensor(chosen, "cpu")
    losses = []
    for step in range(60):
        (loss,) = places_loss(model, chosen, *inputs)
        loss.backward()
        masters.step(min((step + 1) / 10, 1.0))
        losses.append(loss.item())
    # At random: log 2 + 2 log 4.
    assert losses[0] == pytest.approx(3.47, abs=0.1) and losses[-1] < 0.8 * losses[0]


def test_some_prompts_lose_all_their_words() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 90, (4000, 2, 16))
    ids[..., 12:] = 0
    dropped = drop_words(ids)
    assert (dropped[..., 12:] == 0).all()
    whole = (dropped[..., :12] == 2).all(-1)
    assert torch.equal(whole[:, 0], whole[:, 1])
    assert whole.float().mean().item() == pytest.approx(PROMPT_DROP, abs=0.015)
    assert set(no_words(ids).unique().tolist()) == {0, 2}


def test_held_out_numbers_of_a_model_that_knows_nothing() -> None:
    config = toy()
    model = Denoiser(TeacherForcing(new_dit(config)), new_text_encoder(config), Places(config))
    chosen = layout(config.stream, 0, 1)
    latents = 2.0 * torch.randn(16, 1, 2, 8, 8, 8)
    ids, mask = torch.full((16, 3, 64), 5), torch.ones(16, 3, 64, dtype=torch.int64)
    found = held_out(model, Samples(chosen, latents, ids, mask))
    assert set(found) == {*(f"{sigma:g}" for sigma in SIGMAS), "seen"}
    # It says 0: off by noise and latents; what it takes for clean is noise.
    assert found["0.5"] == pytest.approx(5.0, abs=0.2)
    assert found["seen"] == pytest.approx(1 - 5 / 4 * 16 / 15, abs=0.1)


def test_boxes_around_objects_paint_what_whole_frames_draw() -> None:
    scenes = data.batch(data.sample_scenes(6, 11))
    times = torch.tensor([[0.0, 3.7]]).expand(6, 2)
    drawn, _ = data.draw(scenes, times)
    assert torch.equal(data.paint(scenes, times), drawn)
