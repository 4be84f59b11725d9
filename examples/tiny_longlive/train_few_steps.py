"""Phase 3: 4 and 2 steps that are as good as many, by distribution matching on own rollouts.

    python -m examples.tiny_longlive.train_few_steps --out runs/tiny --seconds 400

The generator rolls out with the steps and the cache of inference. A frozen teacher and a critic
that follows the generator each say where a noised sample comes from; the generator moves by the
difference (longlive2.md section 7.3; Yin et al. 2024). `--out` holds the result of phase 2.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from examples.tiny_longlive.latents import Samples
from examples.tiny_longlive.layouts import layout, sample_layout
from examples.tiny_longlive.model import read_denoiser, read_vae, tiny_longlive, write_denoiser
from examples.tiny_longlive.progress import Progress
from examples.tiny_longlive.rollout import Rollout
from examples.tiny_longlive.samples import write_samples
from examples.tiny_longlive.teacher_forcing import TeacherForcing
from examples.tiny_longlive.flow import embed, noise_levels
from examples.tiny_longlive.train_ar import LONGEST, Pool
from examples.tiny_longlive.weights import Masters, frozen
from llvq.models.text import TextEncoder
from llvq.runtime.sampler import schedule

CHUNKS = 4  # of a rollout
OPENING_SHARE = 0.5
STEP_COUNTS = (4, 4, 2)  # drawn from
CRITIC_UPDATES = 3
RATES = {"generator": 5e-5, "critic": 2e-4}
LEVELS = (0.02, 0.98)


@dataclass(frozen=True)
class Models:
    """The generator, the frozen teacher and the critic, all over whole samples."""

    generator: TeacherForcing
    teacher: TeacherForcing
    critic: TeacherForcing


@dataclass(frozen=True)
class Rolled:
    """A rollout: context, all chunks (given, then own); the own chunks before a chosen step."""

    context: Tensor
    inputs: Tensor
    sigma: float
    timestep: int


@torch.no_grad()
def roll(models: Models, samples: Samples, embeds: Tensor, shift: float, random: Random) -> Rolled:
    """The generator's own continuation of the given chunks."""
    plan = schedule(random.choice(STEP_COUNTS), shift)
    step = random.randrange(len(plan.timesteps))
    layout = samples.layout
    rollout = Rollout(models.generator.dit, layout, {})
    chunks, inputs = [], []
    for index in range(len(layout.chunks)):
        prompt = embeds[:, layout.prompts[index]]
        latent = samples.latents[:, index]
        if index >= layout.given:
            denoised = rollout.denoise(index, plan, torch.randn_like(latent), prompt)
            inputs.append(denoised.inputs[step])
            latent = denoised.x0
        if index + 1 < len(layout.chunks):
            rollout.refresh(index, latent, prompt)
        chunks.append(latent)
    return Rolled(
        torch.stack(chunks, 1), torch.stack(inputs, 1), plan.sigmas[step], plan.timesteps[step]
    )


def sample_of(models: Models, rolled: Rolled, embeds: Tensor, samples: Samples) -> Tensor:
    """The generator's x0 of the own chunks, from the chosen step, fp32 and with gradients."""
    shape = rolled.inputs.shape[:2]
    timestep = torch.full(shape, float(rolled.timestep), device=rolled.inputs.device)
    velocity = models.generator(rolled.context, rolled.inputs, timestep, embeds, samples.layout)
    return rolled.inputs.float() - rolled.sigma * velocity.float()


def matching_loss(
    models: Models, x0: Tensor, context: Tensor, embeds: Tensor, samples: Samples, shift: float
) -> Tensor:
    """Its gradient by x0 is the critic's x0 minus the teacher's, scaled as in DMD."""
    with torch.no_grad():
        noisy, level, timestep, _ = renoise(x0, shift, context.dtype, per_chunk=False)
        fake, real = (
            noisy.float() - level * m(context, noisy, timestep, embeds, samples.layout).float()
            for m in (models.critic, models.teacher)
        )
        size = (x0 - real).abs().mean((2, 3, 4, 5), keepdim=True).clamp(min=0.02)
        target = x0 - (fake - real) / size
    return 0.5 * (x0 - target).square().mean()


def critic_loss(
    models: Models, x0: Tensor, context: Tensor, embeds: Tensor, samples: Samples, shift: float
) -> Tensor:
    """Flow matching on what the generator made."""
    noisy, _, timestep, noise = renoise(x0, shift, context.dtype, per_chunk=True)
    velocity = models.critic(context, noisy, timestep, embeds, samples.layout)
    return (velocity.float() - (noise - x0)).square().mean()


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


class RolloutPool(Pool):
    """Shorter samples than those of teacher forcing: what is given, and room to continue."""

    def choose(self) -> Samples:
        kind = self.openings if self.random.random() < OPENING_SHARE else self.runs
        return self.random.choice(kind)

    def _run(self) -> Samples:
        return self._draw(sample_layout(self.config.stream, CHUNKS, LONGEST, self.random),
                          self.clips)  # fmt: skip

    def _opening(self) -> Samples:
        return self._draw(layout(self.config.stream, 0, 1), self.clips * CHUNKS)


def train(models: Models, text: TextEncoder, pool: Pool, progress: Progress) -> None:
    parts = {"generator": models.generator.dit, "critic": models.critic.dit}
    masters = {
        name: Masters([part], rate=RATES[name], betas=(0.0, 0.99), ema=0.98)
        for name, part in parts.items()
    }
    shift, going = pool.config.stream.shift, True
    while going:
        samples = pool.choose()
        with torch.no_grad():
            embeds = embed(text, samples.ids, samples.mask, samples.layout)
        rolled = roll(models, samples, embeds, shift, pool.random)
        x0 = sample_of(models, rolled, embeds, samples)
        made = x0.detach()
        scale = min(1.0, (progress.step + 1) / 20)
        for _ in range(CRITIC_UPDATES):
            loss = critic_loss(models, made, rolled.context, embeds, samples, shift)
            loss.backward()
            masters["critic"].step(scale)
        matching = matching_loss(models, x0, rolled.context, embeds, samples, shift)
        matching.backward()
        # Slower to the end, so that the mean settles.
        masters["generator"].step(scale * max(1 - progress.fraction, 0.1))
        going = progress.advance(
            25, critic=loss.detach(), matching=matching.detach(), spread=made.std()
        )
    masters["generator"].use_mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--steps", type=int, help="instead of seconds: exactly reproducible")
    parser.add_argument("--clips", type=int, default=48, help="per step")
    parser.add_argument("--runs", type=int, default=60, help="steps whose samples are held")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    config = tiny_longlive()
    vae = read_vae(args.out, config).to(args.device, torch.bfloat16)
    dit, text = (m.to(args.device, torch.bfloat16) for m in read_denoiser(args.out, config))
    teacher, critic = copy.deepcopy(dit), copy.deepcopy(dit)
    frozen([vae, text, teacher])
    models = Models(*(TeacherForcing(m, compiled=args.compile) for m in (dit, teacher, critic)))
    pool = RolloutPool(vae, config, args.seed + 1, args.clips)
    pool.fill(args.runs, max(args.runs // 2, 1))
    progress = Progress(args.out / "few_steps.jsonl", seconds=args.seconds, steps=args.steps)
    train(models, text, pool, progress)
    write_denoiser(args.out, config, dit.state_dict(), text.state_dict())
    write_samples(args.out, "few", config, dit, text, vae, (4, 2))
    progress.note(done=True)


if __name__ == "__main__":
    main()
