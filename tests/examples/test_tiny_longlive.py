"""The example model: its data, its training steps and its files, at toy sizes."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from examples.tiny_longlive import captions, data
from examples.tiny_longlive.distribution_matching import Made, Matching, Models, roll
from examples.tiny_longlive.flow import Denoiser, Places, flow_loss
from examples.tiny_longlive.latents import Samples, prompts_of, stretches_of, training_scene
from examples.tiny_longlive.layouts import Layout, layout, position_tensor
from examples.tiny_longlive.model import (
    new_dit,
    new_text_encoder,
    read_denoiser,
    tiny_longlive,
    write_denoiser,
    write_vae,
)
from examples.tiny_longlive.rollout import Rollout
from examples.tiny_longlive.steps import Steps
from examples.tiny_longlive.teacher_forcing import TeacherForcing
from examples.tiny_longlive.tokens import encode
from examples.tiny_longlive.train_vae import Clips, vae_loss
from examples.tiny_longlive.weights import Masters, frozen
from llvq.checkpoints.model import open_model
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.models.vae import WanVae
from llvq.runtime.sampler import schedule

LAYOUTS = [(0, 3, None), (0, 3, 1), (30, 2, None), (30, 2, 31), (30, 2, 20)]


def toy() -> ModelConfig:
    config = tiny_longlive()
    assert config.vae is not None and config.text is not None
    return replace(
        config,
        dit=replace(config.dit, dim=64, ffn_dim=64, num_heads=1, num_layers=1, text_dim=32,
                    in_dim=8, out_dim=8),
        vae=replace(config.vae, dim=4, dec_dim=4),
        text=replace(config.text, dim=32, attn_dim=32, ffn_dim=32, num_heads=1, num_layers=1),
        latent_hw=(4, 4),
    )  # fmt: skip


def toy_samples(config: ModelConfig, chosen: Layout) -> Samples:
    scenes = data.sample_scenes(4, 0)
    prompts = [p for pair in zip(scenes[:2], scenes[2:], strict=True) for p in prompts_of(*pair)]
    ids, mask = (t.view(2, 3, -1) for t in encode(prompts, config.dit.text_len))
    latents = torch.randn(2, len(chosen.chunks), 4, config.dit.in_dim, *config.latent_hw)
    return Samples(chosen, latents, ids, mask)


def test_a_caption_says_everything_that_it_is_about() -> None:
    for scene in data.sample_scenes(200, seed=3):
        text = captions.caption(scene)
        read = captions.parse(captions.CUT + text)
        silent = tuple(replace(t, jitter=(0.0, 0.0), pace=1.0) for t in scene.things)
        assert read == replace(scene, things=silent)


def test_half_of_what_training_sees_turns() -> None:
    random = Random(0)
    moves = Counter(t.move for _ in range(400) for t in training_scene(random).things)
    assert set(moves) == set(captions.MOVES)
    share = {move: count / moves.total() for move, count in moves.items()}
    assert 0.25 < share["tumbles"] < 0.35 and 0.15 < share["spins"] < 0.22


def test_a_sentence_outside_the_grammar_is_refused() -> None:
    with pytest.raises(ValueError, match="not a sentence"):
        captions.parse("A dog barks.")


def test_every_caption_fits_the_text_encoder() -> None:
    prompts = [captions.CUT + captions.caption(scene) for scene in data.sample_scenes(500, 5)]
    ids, mask = encode(prompts, tiny_longlive().dit.text_len)
    assert (mask.sum(1) < ids.shape[1]).all() and not (ids == 2).any()


def test_the_same_seed_gives_the_same_pixels() -> None:
    first, again, other = (Clips(2, seed, "cpu", 5).crops(2, 32) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_truth_is_where_the_pixels_are() -> None:
    thing = captions.Thing("small", "white", "ball", "on the left", "drifts", "right")
    batch = data.batch([captions.Scene((thing,), "navy", "plain")])
    times = torch.tensor([[0.0, 1.0, 2.5]])
    pixels, visible = data.draw(batch, times)
    truth = data.truth(batch, times)
    painted = (pixels - pixels[..., :1, :1]).abs().amax(2)
    bright = (painted > 0.1).float()
    where = torch.arange(data.SIZE) + 0.5
    x = (bright * where).sum((-1, -2)) / bright.sum((-1, -2))
    y = (bright * where[:, None]).sum((-1, -2)) / bright.sum((-1, -2))
    found = torch.stack([x, y], -1)
    assert torch.allclose(found, truth.centre[:, :, 0], atol=0.5)
    assert torch.allclose(visible[0, :, 0], torch.ones(3), atol=0.02)
    assert truth.centre[0, 1, 0, 0] - truth.centre[0, 0, 0, 0] == pytest.approx(data.SPEED)


def test_what_is_in_front_hides_what_is_behind() -> None:
    back = captions.Thing("small", "red", "ball", "in the center", "waits")
    front = captions.Thing("large", "blue", "square", "in the center", "waits")
    batch = data.batch([captions.Scene((back, front), "gray", "plain")])
    _, visible = data.draw(batch, torch.zeros(1, 1))
    assert visible[0, 0, 0] < 0.01 and visible[0, 0, 1] > 0.98


def test_a_window_is_a_part_of_the_frame() -> None:
    batch = data.batch(data.sample_scenes(1, 8))
    whole, _ = data.draw(batch, torch.tensor([[3.0]]))
    part, _ = data.draw(batch, torch.tensor([[3.0]]), (40, 60, 32, 16))
    assert torch.allclose(part, whole[..., 60:76, 40:72], atol=1e-5)


def test_stretches_are_runs_of_chunks() -> None:
    assert stretches_of((0, 5, 6, 9)) == [(0, 1), (5, 2), (9, 1)]


@pytest.mark.parametrize("case", LAYOUTS)
def test_one_pass_gives_what_the_denoiser_gives_chunk_by_chunk(case: tuple) -> None:
    torch.manual_seed(0)
    config = toy()
    chosen = layout(config.stream, *case)
    samples = toy_samples(config, chosen)
    dit = CausalWanDit(config.dit)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    noisy = torch.randn_like(samples.latents[:, chosen.given :])
    times, embeds = torch.full(noisy.shape[:2], 500.0), torch.randn(2, 3, 64, 32)
    rollout = Rollout(dit, chosen, position_tensor(chosen, "cpu"))
    with torch.no_grad():
        at_once = TeacherForcing(dit)(samples.latents, noisy, times, embeds, chosen)
        for index, prompt in enumerate(chosen.prompts):
            if index >= chosen.given:
                chunk = noisy[:, index - chosen.given]
                velocity = rollout._call(index, chunk, 500, embeds[:, prompt])[0]
                expected = at_once[:, index - chosen.given]
                assert torch.allclose(velocity, expected, atol=1e-5)
            rollout.refresh(index, samples.latents[:, index], embeds[:, prompt])


def test_vae_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    config = toy().vae
    assert config is not None
    vae, video = WanVae(config), Clips(2, 0, "cpu", 5).crops(2, 32)
    masters = Masters([vae], rate=4e-3)
    losses = []
    for _ in range(8):
        loss, _ = vae_loss(vae, video)
        loss.backward()
        masters.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_teacher_forcing_lowers_the_loss() -> None:
    torch.manual_seed(0)
    config = toy()
    chosen = layout(config.stream, 0, 2)
    samples = toy_samples(config, chosen)
    dit, text, places = new_dit(config), new_text_encoder(config), Places(config)
    model = Denoiser(TeacherForcing(dit), text, places)
    masters, losses = Masters(model.modules, rate=3e-3, muon=True), []
    positions = position_tensor(chosen, "cpu")
    for _ in range(30):
        loss, error, _ = flow_loss(model, chosen, config.stream.shift, 2, samples.latents,
                                   samples.ids, samples.mask, positions)  # fmt: skip
        loss.backward()
        masters.step()
        losses.append(error.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def few_step_models(config: ModelConfig) -> Models:
    """A generator and its critic that both differ from the teacher by a shift of the head."""
    teacher = new_dit(config)
    frozen([teacher])
    generator = copy.deepcopy(teacher).requires_grad_(True)
    torch.nn.init.constant_(generator.head.head.bias, 0.5)
    return Models(*map(TeacherForcing, (generator, teacher, copy.deepcopy(generator))))


def test_distribution_matching_moves_towards_the_teacher() -> None:
    torch.manual_seed(0)
    config = toy()
    chosen = layout(config.stream, 0, 2)
    samples, plan = toy_samples(config, chosen), schedule(4, config.stream.shift)
    models, text = few_step_models(config), new_text_encoder(config)
    matching = Matching(models, text, Steps(graphs=False), config.stream.shift)
    matching.masters = {
        "generator": Masters([models.generator.dit], rate=1e-3),
        "critic": Masters([models.critic.dit], rate=1e-3),
    }
    for step in range(5):
        numbers = matching.step(samples, plan, step % 4, 1.0)
    assert set(numbers) == {"critic", "matching", "spread"}
    bias = models.generator.dit.head.head.bias
    # The teacher's is 0, and the generator's was 0.5 everywhere; the critic follows it.
    assert 0.3 < bias.mean() < 0.498
    assert models.critic.dit.head.head.bias.mean() != 0.5
    assert (models.teacher.dit.head.head.bias == 0).all()


def test_only_the_critic_learns_at_first() -> None:
    torch.manual_seed(0)
    config = toy()
    models = few_step_models(config)
    matching = Matching(models, new_text_encoder(config), Steps(graphs=False), 5.0)
    before = copy.deepcopy(models.generator.dit.state_dict())
    matching.step(toy_samples(config, layout(config.stream, 0, 1)), schedule(2, 5.0), 0, 0.0)
    after = models.generator.dit.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(models.critic.dit.head.head.bias, before["head.head.bias"])


@pytest.mark.parametrize("steps", [2, 4])
def test_what_a_step_of_a_rollout_sees_is_what_one_pass_sees(steps: int) -> None:
    """So a rollout's x0 is the generator's, and its gradient can be taken in one pass."""
    torch.manual_seed(0)
    config = toy()
    chosen = layout(config.stream, 30, 2, 31)
    samples, plan = toy_samples(config, chosen), schedule(steps, config.stream.shift)
    dit, position = CausalWanDit(config.dit), position_tensor(chosen, "cpu")
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    models, embeds = Models(*[TeacherForcing(dit)] * 3), torch.randn(2, 3, 64, 32)
    context, inputs, seen = roll(models, chosen, plan, samples.latents, embeds, position)
    made = Made(chosen, context, embeds, position)
    for step, (sigma, timestep) in enumerate(zip(plan.sigmas, plan.timesteps, strict=False)):
        times = torch.full(inputs.shape[1:3], float(timestep))
        velocity = made.velocity(models.generator, inputs[step], times)
        assert torch.allclose(inputs[step] - sigma * velocity, seen[step], atol=2e-5)
    # The last step of UniPC ends at the x0 that it sees.
    assert torch.allclose(seen[-1], context[:, chosen.given :], atol=2e-5)


def test_llvq_reads_what_is_written(tmp_path: Path) -> None:
    config = toy()
    config = replace(config, dit=replace(config.dit, in_dim=48, out_dim=48))
    assert config.vae is not None
    dit, text, vae = new_dit(config), new_text_encoder(config), WanVae(config.vae)
    write_vae(tmp_path, vae, torch.arange(48.0), torch.ones(48))
    write_denoiser(tmp_path, config, dit.state_dict(), text.state_dict())
    model = open_model(tmp_path)
    assert (model.config.dit, model.config.stream) == (config.dit, config.stream)
    assert model.config.latent_hw == config.latent_hw
    assert model.bundle.text_encoder is not None and model.bundle.tokenizer is not None
    assert model.config.vae is not None and model.config.vae.latent_mean[5] == 5.0
    again, _ = read_denoiser(tmp_path, config)
    assert torch.equal(again.head.modulation, dit.head.modulation.bfloat16().float())


def test_weights_are_replaced_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy()
    dit, text = new_dit(config), new_text_encoder(config)
    write_denoiser(tmp_path, config, dit.state_dict(), text.state_dict())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("examples.tiny_longlive.model.write_tokenizer", killed)
    other = CausalWanDit(config.dit).state_dict()
    with pytest.raises(KeyboardInterrupt):
        write_denoiser(tmp_path, config, other, text.state_dict())
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()} == before
    monkeypatch.undo()
    write_denoiser(tmp_path, config, other, text.state_dict())
    assert {file.name for file in tmp_path.iterdir()} == set(before)
    assert torch.equal(read_denoiser(tmp_path, config)[0].state_dict()["head.modulation"],
                       other["head.modulation"].bfloat16().float())  # fmt: skip


def test_the_whole_model_is_at_most_40_megabytes() -> None:
    config = tiny_longlive()
    assert config.vae is not None and config.text is not None
    with torch.device("meta"):
        parts = CausalWanDit(config.dit), WanVae(config.vae), new_text_encoder(config)
    assert sum(2 * p.numel() for part in parts for p in part.parameters()) < 40_000_000
