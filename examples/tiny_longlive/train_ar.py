"""Phase 2: denoiser and text encoder by teacher forcing, with flow matching.

    python -m examples.tiny_longlive.train_ar --out runs/tiny --seconds 500 --part 1/2

`--out` holds the VAE of phase 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from examples.tiny_longlive.flow import Denoiser, Places, flow_loss, places_loss
from examples.tiny_longlive.latents import Samples, draw_samples
from examples.tiny_longlive.layouts import Layout, layout, position_tensor, sample_layout
from examples.tiny_longlive.model import (
    new_dit,
    new_text_encoder,
    read_denoiser,
    read_vae,
    tiny_longlive,
    write_denoiser,
)
from examples.tiny_longlive.progress import Progress, add_arguments, part_seed
from examples.tiny_longlive.replicas import Replicas, train_together
from examples.tiny_longlive.steps import Steps, Work, gradients, own_stream
from examples.tiny_longlive.teacher_forcing import TeacherForcing
from examples.tiny_longlive.validation import HELD_OUT_SEED, held_out
from examples.tiny_longlive.weights import Masters, frozen, rate_scale
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae

RUN_CHUNKS = 5  # trained chunks of a sample
COPIES = 3  # of each, at noise levels of their own: its clean history is computed once for all
LONGEST = 96  # chunks of the longest video: 64 seconds
OPENINGS_ONLY = 0.12  # of the phase: first what the prompt means, then how it goes on
PLACES_STEPS, PLACES_ERROR = 800, 0.2  # with which the phase begins, at most and until
RATE, MEAN = 1e-3, 0.999


class Pool:
    """Encoded samples on the device, drawn once and then replaced a few at a time."""

    def __init__(
        self, vae: WanVae, config: ModelConfig, seed: int, *, clips: int, openings: int
    ) -> None:
        self.vae, self.config, self.random = vae, config, Random(seed)
        self.clips, self.opening_clips = clips, openings
        self.runs: list[Samples] = []
        self.openings: list[Samples] = []

    def fill(self, runs: int, openings: int) -> None:
        self.runs += [self.draw_run() for _ in range(runs)]
        self.openings += [self.draw_opening() for _ in range(openings)]

    def renew(self) -> None:
        """Replace one sample of each kind."""
        self.runs[self.random.randrange(len(self.runs))] = self.draw_run()
        self.openings[self.random.randrange(len(self.openings))] = self.draw_opening()

    def choose(self) -> tuple[Samples, Samples]:
        """A run and an opening."""
        return self.random.choice(self.runs), self.random.choice(self.openings)

    def draw_run(self) -> Samples:
        chosen = sample_layout(self.config.stream, RUN_CHUNKS, LONGEST, self.random)
        return self._draw(chosen, self.clips)

    def draw_opening(self) -> Samples:
        return self._draw(layout(self.config.stream, 0, 1), self.opening_clips)

    def _draw(self, chosen: Layout, count: int) -> Samples:
        return draw_samples(
            self.vae,
            chosen,
            count,
            self.random.getrandbits(48),
            text_len=self.config.dit.text_len,
            frames_per_chunk=self.config.stream.frames_per_chunk,
        )


def train(
    model: Denoiser,
    steps: Steps,
    pool: Pool,
    progress: Progress,
    save: Callable[[], None],
    *,
    rate: float = RATE,
    renew_every: int = 25,
) -> None:
    """Every step an opening and a run, at first two openings. `save` is called with the mean."""
    masters = Masters(model.modules, rate=rate, muon=True, ema=MEAN, replicas=progress.replicas)
    if progress.part[0] == 1:
        count, error = learn_places(model, masters, steps, pool)
        progress.note(places_steps=count, places=round(error, 4))
    shift, going = pool.config.stream.shift, True
    while going:
        if progress.step % renew_every == renew_every - 1:
            pool.renew()
        run, opening = pool.choose()
        if progress.fraction < OPENINGS_ONLY:
            run = pool.choose()[1]
        numbers = [learn_flow(model, steps, samples, shift) for samples in (opening, run)]
        norm = masters.step(rate_scale(progress.fraction, progress.local))
        going = progress.advance(
            100, opening=numbers[0][1], run=numbers[1][1], places=numbers[0][2], grad=norm
        )
        if progress.save_is_due() or not going:
            masters.use_mean()
            if progress.replicas.is_first:
                save()
            masters.use_masters()
    masters.use_mean()


def learn_places(
    model: Denoiser, masters: Masters, steps: Steps, pool: Pool, most: int = PLACES_STEPS
) -> tuple[int, float]:
    """Where a token is, from pure noise: before all else, since little can be learned without.

    Until the error is below PLACES_ERROR, or for `most` steps. Returns the steps and the error.
    """
    for step in range(1, most + 1):
        samples = pool.choose()[1]
        (error,) = learn(steps, "places", samples, partial(places_loss, model, samples.layout))
        masters.step(min(step / 20, 1.0))
        if step % 50 == 0 and masters.replicas.average(error) < PLACES_ERROR:
            break
    return step, float(error)


def learn_flow(model: Denoiser, steps: Steps, samples: Samples, shift: float) -> tuple[Tensor, ...]:
    """The numbers of `flow_loss` on `samples`, and its gradients where the masters look."""
    copies = COPIES if len(samples.layout.chunks) > 1 else 1
    return learn(steps, "flow", samples, partial(flow_loss, model, samples.layout, shift, copies))


def learn(steps: Steps, name: str, samples: Samples, loss: Work) -> tuple[Tensor, ...]:
    layout = samples.layout
    kind = name, layout.windows, layout.prompts, samples.latents.shape
    positions = position_tensor(layout, samples.latents.device)
    inputs = samples.latents, samples.ids, samples.mask, positions
    return steps(kind, inputs, partial(gradients, loss))


def new_or_read(folder: Path, config: ModelConfig, part: int) -> tuple[CausalWanDit, TextEncoder]:
    """Denoiser and text encoder as they are before a part of the phase."""
    if part == 1:
        return new_dit(config), new_text_encoder(config)
    return read_denoiser(folder, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=500)
    parser.add_argument("--clips", type=int, default=16, help="videos of a run, per step")
    parser.add_argument("--openings", type=int, default=192, help="first chunks, per step")
    parser.add_argument("--pool", type=int, default=96, help="batches of either that are held")
    parser.add_argument("--graphs", action="store_true", help="replay steps as CUDA graphs")
    train_together(train_ar, parser.parse_args())


def train_ar(args: argparse.Namespace, replicas: Replicas) -> None:
    part, seed = args.part[0], part_seed(args)
    torch.manual_seed(seed)
    config = tiny_longlive()
    progress = Progress(args.out / "ar.jsonl", seconds=args.seconds, steps=args.steps,
                        part=args.part, replicas=replicas)  # fmt: skip
    vae = read_vae(args.out, config).to(args.device, torch.bfloat16)
    frozen([vae])
    dit, text = (m.to(args.device, torch.bfloat16) for m in new_or_read(args.out, config, part))
    places = Places(config).to(args.device, torch.bfloat16)
    model = Denoiser(TeacherForcing(dit), text, places)
    torch.manual_seed(replicas.seed(seed))

    def pool_of(seed: int, count: int) -> Pool:
        pool = Pool(vae, config, seed, clips=args.clips, openings=args.openings)
        pool.fill(count, count)
        return pool

    with own_stream(args.device):
        tests = pool_of(HELD_OUT_SEED, 1)
        pool = pool_of(replicas.seed(seed), args.pool)
        progress.note(pool=args.pool)

        def save() -> None:
            write_denoiser(args.out, config, dit.state_dict(), text.state_dict())
            run, opening = (held_out(model, batch) for batch in tests.choose())
            progress.note(held_out_opening=opening, held_out_run=run)

        train(model, Steps(graphs=args.graphs), pool, progress, save)
    progress.note(done=True)


if __name__ == "__main__":
    main()
