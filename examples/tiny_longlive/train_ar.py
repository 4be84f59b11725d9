"""Phase 2: denoiser and text encoder by teacher forcing, with flow matching.

    python -m examples.tiny_longlive.train_ar --out runs/tiny --seconds 480

`--out` holds the VAE of phase 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from examples.tiny_longlive.latents import Samples, draw_samples
from examples.tiny_longlive.layouts import Layout, layout, sample_layout
from examples.tiny_longlive.model import (
    new_dit,
    new_text_encoder,
    read_vae,
    tiny_longlive,
    write_denoiser,
)
from examples.tiny_longlive.progress import Progress
from examples.tiny_longlive.samples import write_samples
from examples.tiny_longlive.teacher_forcing import TeacherForcing
from examples.tiny_longlive.weights import Masters, frozen, rate_scale
from llvq.models.config import ModelConfig
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae

RUN_CHUNKS = 5  # trained chunks of a sample
LONGEST = 96  # chunks of the longest video: 64 seconds
OPENING_SHARE = 0.4  # of the steps: nothing but the first chunk, which only the prompt decides
HISTORY_NOISE = 0.3  # most noise on clean chunks, so that a rollout's small errors do not add up
WORD_DROP = 0.02
UNKNOWN = 2  # the token for it


class Pool:
    """Encoded samples on the device, drawn once and then replaced a few at a time."""

    def __init__(self, vae: WanVae, config: ModelConfig, seed: int, clips: int) -> None:
        self.vae, self.config, self.clips = vae, config, clips
        self.random = Random(seed)
        self.runs: list[Samples] = []
        self.openings: list[Samples] = []

    def fill(self, runs: int, openings: int) -> None:
        self.runs += [self._run() for _ in range(runs)]
        self.openings += [self._opening() for _ in range(openings)]

    def renew(self) -> None:
        """Replace one sample of each kind."""
        self.runs[self.random.randrange(len(self.runs))] = self._run()
        self.openings[self.random.randrange(len(self.openings))] = self._opening()

    def choose(self) -> Samples:
        kind = self.openings if self.random.random() < OPENING_SHARE else self.runs
        return self.random.choice(kind)

    def _run(self) -> Samples:
        chosen = sample_layout(self.config.stream, RUN_CHUNKS, LONGEST, self.random)
        return self._draw(chosen, self.clips)

    def _opening(self) -> Samples:
        return self._draw(layout(self.config.stream, 0, 1), self.clips * 2 * RUN_CHUNKS)

    def _draw(self, chosen: Layout, count: int) -> Samples:
        return draw_samples(
            self.vae,
            chosen,
            count,
            self.random.getrandbits(48),
            text_len=self.config.dit.text_len,
            frames_per_chunk=self.config.stream.frames_per_chunk,
        )


def flow_loss(model: TeacherForcing, text: TextEncoder, samples: Samples, shift: float) -> Tensor:
    """Mean squared error of the velocity of the trained chunks, each at its own noise level."""
    layout, clean = samples.layout, samples.latents
    x0 = clean[:, layout.given :]
    B, m = x0.shape[:2]
    sigma, timestep = noise_levels((B, m), shift, clean.device)
    noise = torch.randn_like(x0)
    level = sigma[:, :, None, None, None, None]
    noisy = ((1 - level) * x0.float() + level * noise.float()).to(x0.dtype)
    embeds = embed(text, drop_words(samples.ids), samples.mask)
    velocity = model(corrupt(clean), noisy, timestep, embeds, layout)
    return (velocity.float() - (noise.float() - x0.float())).square().mean()


def noise_levels(
    shape: tuple[int, ...], shift: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """sigma and whole timesteps, more of them at high noise, as the sampler's schedule."""
    u = torch.rand(shape, device=device)
    sigma = shift * u / (1 + (shift - 1) * u)
    return sigma, (sigma * 1000).floor()


def corrupt(clean: Tensor) -> Tensor:
    """Half of the chunks with up to HISTORY_NOISE added; the model is told that they are clean."""
    shape = (*clean.shape[:2], 1, 1, 1, 1)
    level = torch.rand(shape, device=clean.device) * HISTORY_NOISE
    level = level * (torch.rand(shape, device=clean.device) < 0.5)
    return clean + (level * torch.randn_like(clean)).to(clean.dtype)


def drop_words(ids: Tensor) -> Tensor:
    """A few words made unknown: a prompt may have some that the model never saw."""
    drop = (torch.rand(ids.shape, device=ids.device) < WORD_DROP) & (ids > UNKNOWN)
    return torch.where(drop, UNKNOWN, ids)


def embed(text: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    """[B, 3, X] tokens to embeddings [B, 3, X, text_dim]."""
    return text(ids.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, ids.shape[:2])


def train(
    model: TeacherForcing,
    text: TextEncoder,
    pool: Pool,
    progress: Progress,
    *,
    rate: float = 1e-3,
    renew_every: int = 150,
) -> None:
    masters = Masters([model.dit, text], rate=rate, muon=True)
    shift, going = pool.config.stream.shift, True
    recent = {True: 0.0, False: 0.0}
    while going:
        if progress.step % renew_every == renew_every - 1:
            pool.renew()
        samples = pool.choose()
        loss = flow_loss(model, text, samples, shift)
        loss.backward()
        norm = masters.step(rate_scale(progress.fraction))
        recent[len(samples.layout.chunks) == 1] = loss.detach()
        going = progress.advance(50, run=recent[False], opening=recent[True], grad=norm)
    masters.use_mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--steps", type=int, help="instead of seconds: exactly reproducible")
    parser.add_argument("--clips", type=int, default=32, help="per step")
    parser.add_argument("--runs", type=int, default=100, help="steps whose samples are held")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    config = tiny_longlive()
    vae = read_vae(args.out, config).to(args.device, torch.bfloat16)
    dit = new_dit(config).to(args.device, torch.bfloat16)
    text = new_text_encoder(config).to(args.device, torch.bfloat16)
    frozen([vae])
    pool = Pool(vae, config, args.seed, args.clips)
    pool.fill(args.runs, max(args.runs // 2, 1))
    progress = Progress(args.out / "ar.jsonl", seconds=args.seconds, steps=args.steps)
    train(TeacherForcing(dit, compiled=args.compile), text, pool, progress)
    write_denoiser(args.out, config, dit.state_dict(), text.state_dict())
    write_samples(args.out, "ar", config, dit, text, vae, (4, 24))
    progress.note(done=True)


if __name__ == "__main__":
    main()
