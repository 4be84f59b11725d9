"""Distribution matching: a generator that rolls out in few steps, moved by two that judge it.

A frozen teacher and a critic that follows the generator each say where a noised sample comes from;
the generator moves by the difference (longlive2.md section 7.3; Yin et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from examples.tiny_longlive.flow import embed, no_words, noise_levels
from examples.tiny_longlive.latents import Samples
from examples.tiny_longlive.layouts import Layout, position_tensor
from examples.tiny_longlive.replicas import ALONE, Replicas
from examples.tiny_longlive.rollout import Rollout
from examples.tiny_longlive.steps import Steps, gradients
from examples.tiny_longlive.teacher_forcing import TeacherForcing
from examples.tiny_longlive.weights import Masters
from llvq.models.text import TextEncoder
from llvq.runtime.sampler import Schedule

CRITIC_UPDATES = 3
RATES = {"generator": 5e-5, "critic": 2e-4}
LEVELS = (0.02, 0.98)
GUIDANCE = 1.0  # how far beyond the prompt's x0 the teacher goes, away from that without words


@dataclass(frozen=True)
class Models:
    """The generator, the frozen teacher and the critic, all over whole samples."""

    generator: TeacherForcing
    teacher: TeacherForcing
    critic: TeacherForcing


@dataclass(frozen=True)
class Made:
    """What the own chunks of a rollout come after: its chunks, embeddings and positions."""

    layout: Layout
    context: Tensor
    embeds: Tensor
    position: Tensor

    def velocity(self, model: TeacherForcing, noisy: Tensor, timestep: Tensor) -> Tensor:
        return model(self.context, noisy, timestep, self.embeds, self.layout, self.position)


@torch.no_grad()
def roll(
    models: Models,
    layout: Layout,
    plan: Schedule,
    latents: Tensor,
    embeds: Tensor,
    position: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The generator's own continuation of the given chunks, with the cache of inference.

    Returns all chunks [B, n, C, ...] (given, then own), the own ones before each step
    [steps, B, m, C, ...] and, in fp32, the x0 that each step sees in them.
    """
    rollout = Rollout(models.generator.dit, layout, position)
    chunks, inputs, seen = [], [], []
    for index in range(len(layout.chunks)):
        prompt, latent = embeds[:, layout.prompts[index]], latents[:, index]
        if index >= layout.given:
            denoised = rollout.denoise(index, plan, torch.randn_like(latent), prompt)
            inputs.append(torch.stack(denoised.inputs))
            seen.append(torch.stack(denoised.seen))
            latent = denoised.x0
        if index + 1 < len(layout.chunks):
            rollout.refresh(index, latent, prompt)
        chunks.append(latent)
    return torch.stack(chunks, 1), torch.stack(inputs, 2), torch.stack(seen, 2)


def matching_loss(
    models: Models,
    layout: Layout,
    shift: float,
    context: Tensor,
    inputs: Tensor,
    step: Tensor,
    embeds: Tensor,
    wordless: Tensor,
    position: Tensor,
) -> tuple[Tensor]:
    """Its gradient by the generator's x0 is the critic's x0 minus the teacher's, scaled as in DMD.

    The generator's x0 of the own chunks is what it sees in `inputs`, the latents before `step`
    (fp32: sigma, timestep). wordless: embeddings of the same prompts without words.
    """
    made, wordless_made = (Made(layout, context, e, position) for e in (embeds, wordless))
    velocity = made.velocity(models.generator, inputs, step[1].expand(inputs.shape[:2]))
    x0 = inputs.float() - step[0] * velocity.float()
    with torch.no_grad():
        noisy, level, timestep, _ = renoise(x0, shift, context.dtype, per_chunk=False)
        fake, real, plain = (
            noisy.float() - level * history.velocity(model, noisy, timestep).float()
            for model, history in (
                (models.critic, made), (models.teacher, made), (models.teacher, wordless_made)
            )
        )  # fmt: skip
        real = real + GUIDANCE * (real - plain)
        size = (x0 - real).abs().mean((2, 3, 4, 5), keepdim=True).clamp(min=0.02)
        target = x0 - (fake - real) / size
    return (0.5 * (x0 - target).square().mean(),)


def critic_loss(
    models: Models,
    layout: Layout,
    shift: float,
    context: Tensor,
    x0: Tensor,
    embeds: Tensor,
    position: Tensor,
) -> tuple[Tensor]:
    """Flow matching on what the generator made: its fp32 `x0` of the own chunks."""
    noisy, _, timestep, noise = renoise(x0, shift, context.dtype, per_chunk=True)
    velocity = Made(layout, context, embeds, position).velocity(models.critic, noisy, timestep)
    return ((velocity.float() - (noise - x0)).square().mean(),)


def renoise(
    x0: Tensor, shift: float, dtype: torch.dtype, *, per_chunk: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0 at a random noise level: sample in `dtype`, level (broadcasts), timestep [B, m], noise."""
    B, m = x0.shape[:2]
    sigma, _ = noise_levels((B, m if per_chunk else 1), shift, x0.device)
    sigma = sigma.clamp(*LEVELS).expand(B, m)
    level, noise = sigma[:, :, None, None, None, None], torch.randn_like(x0)
    noisy = (1 - level) * x0 + level * noise
    return noisy.to(dtype), level, (sigma * 1000).floor(), noise


class Matching:
    """One step of the phase after another: a rollout, the critic on it, the generator."""

    def __init__(
        self,
        models: Models,
        text: TextEncoder,
        steps: Steps,
        shift: float,
        replicas: Replicas = ALONE,
    ) -> None:
        self.models, self.text, self.steps, self.shift = models, text, steps, shift
        parts = {"generator": models.generator.dit, "critic": models.critic.dit}
        self.masters = {
            name: Masters([part], rate=RATES[name], betas=(0.0, 0.99), ema=0.98, replicas=replicas)
            for name, part in parts.items()
        }

    def step(
        self, samples: Samples, plan: Schedule, chosen: int, scale: float
    ) -> dict[str, Tensor]:
        """Roll out with `plan`, and match the x0 that its step `chosen` sees.

        scale: of the generator's rate; at 0 only the critic learns.
        """
        layout, latents = samples.layout, samples.latents
        kind = layout.windows, layout.prompts, latents.shape
        position = position_tensor(layout, latents.device)
        embeds, wordless = self._embeds(samples)
        context, inputs, seen = self.steps(
            ("roll", len(plan.timesteps), kind),
            (latents, embeds, position),
            partial(roll, self.models, layout, plan),
        )
        made = seen[chosen]
        loss = partial(critic_loss, self.models, layout, self.shift)
        for _ in range(CRITIC_UPDATES):
            critic = self.steps(
                ("critic", kind), (context, made, embeds, position), partial(gradients, loss)
            )
            self.masters["critic"].step()
        numbers = {"critic": critic[0], "spread": made.std()}
        if scale:
            now = torch.tensor([plan.sigmas[chosen], plan.timesteps[chosen]]).to(latents.device)
            loss = partial(matching_loss, self.models, layout, self.shift)
            given = context, inputs[chosen], now, embeds, wordless, position
            matching = self.steps(("matching", kind), given, partial(gradients, loss))
            self.masters["generator"].step(scale)
            numbers["matching"] = matching[0]
        return numbers

    @torch.no_grad()
    def _embeds(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Of the prompts, and of the same without words."""
        with_words, without = (
            embed(self.text, ids, samples.mask, samples.layout)
            for ids in (samples.ids, no_words(samples.ids))
        )
        return with_words, without
