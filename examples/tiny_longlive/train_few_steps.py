"""Phase 3: 4 and 2 steps that are as good as many, by distribution matching on own rollouts.

    python -m examples.tiny_longlive.train_few_steps --teacher runs/tiny --out runs/tiny-few

The generator rolls out with the steps and the cache of inference, and is moved by
`distribution_matching.py`. `--teacher` holds the results of phases 1 and 2; `--out` becomes a
checkpoint of its own.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from examples.tiny_longlive.distribution_matching import Matching, Models
from examples.tiny_longlive.latents import Samples
from examples.tiny_longlive.layouts import sample_layout
from examples.tiny_longlive.model import (
    VAE_FILE,
    read_denoiser,
    read_vae,
    tiny_longlive,
    write_denoiser,
)
from examples.tiny_longlive.progress import Progress, add_arguments, part_seed
from examples.tiny_longlive.replicas import Replicas, train_together
from examples.tiny_longlive.steps import Steps, own_stream
from examples.tiny_longlive.teacher_forcing import TeacherForcing
from examples.tiny_longlive.train_ar import LONGEST, Pool
from examples.tiny_longlive.weights import frozen
from llvq.runtime.sampler import schedule

CHUNKS = 4  # of a rollout
OPENING_SHARE = 0.5
STEP_COUNTS = (4, 4, 2)  # drawn from
CRITIC_FIRST = 60  # updates of the critic alone, with which a part begins


class RolloutPool(Pool):
    """Shorter samples than those of teacher forcing: what is given, and room to continue."""

    def draw_run(self) -> Samples:
        return self._draw(sample_layout(self.config.stream, CHUNKS, LONGEST, self.random),
                          self.clips)  # fmt: skip


def train(
    matching: Matching,
    pool: Pool,
    progress: Progress,
    save: Callable[[], None],
    *,
    renew_every: int = 8,
) -> None:
    """First only the critic, which is new; at the end slower, so that the mean settles.

    `save` is called with the mean of the generator.
    """
    generator, going = matching.masters["generator"], True
    kinds = Random(progress.part[0])  # of steps: the same for all replicas, so that none waits
    while going:
        if progress.step % renew_every == renew_every - 1:
            pool.renew()
        samples = pool.choose()[kinds.random() < OPENING_SHARE]
        plan = schedule(kinds.choice(STEP_COUNTS), matching.shift)
        chosen = kinds.randrange(len(plan.timesteps))
        warm = min(max(progress.step - CRITIC_FIRST, 0) / 20, 1.0)
        scale = warm * max(1 - progress.fraction, 0.1)
        numbers = matching.step(samples, plan, chosen, scale)
        going = progress.advance(25, **numbers)
        if progress.save_is_due() or not going:
            generator.use_mean()
            if progress.replicas.is_first:
                save()
            generator.use_masters()
    generator.use_mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=500)
    parser.add_argument("--teacher", type=Path, required=True, help="the folder of phase 2")
    parser.add_argument("--clips", type=int, default=48, help="videos of a rollout, per step")
    parser.add_argument("--openings", type=int, default=192, help="first chunks, per step")
    parser.add_argument("--pool", type=int, default=48, help="batches of either that are held")
    parser.add_argument("--graphs", action="store_true", help="replay steps as CUDA graphs")
    train_together(train_few_steps, parser.parse_args())


def train_few_steps(args: argparse.Namespace, replicas: Replicas) -> None:
    part, seed = args.part[0], part_seed(args)
    torch.manual_seed(seed)
    config = tiny_longlive()
    progress = Progress(args.out / "few_steps.jsonl", seconds=args.seconds, steps=args.steps,
                        part=args.part, replicas=replicas)  # fmt: skip
    vae = read_vae(args.teacher, config).to(args.device, torch.bfloat16)
    for name in (VAE_FILE, "vae_config.json") if replicas.is_first else ():
        shutil.copy(args.teacher / name, args.out / name)
    teacher, text = (m.to(args.device, torch.bfloat16) for m in read_denoiser(args.teacher, config))
    begun = args.teacher if part == 1 else args.out
    dit = read_denoiser(begun, config)[0].to(args.device, torch.bfloat16)
    critic = copy.deepcopy(teacher)
    frozen([vae, text, teacher])
    models = Models(*(TeacherForcing(m) for m in (dit, teacher, critic)))
    torch.manual_seed(replicas.seed(seed))

    def save() -> None:
        write_denoiser(args.out, config, dit.state_dict(), text.state_dict())

    with own_stream(args.device):
        own = replicas.seed(seed + 1)
        pool = RolloutPool(vae, config, own, clips=args.clips, openings=args.openings)
        pool.fill(args.pool, args.pool)
        progress.note(pool=args.pool)
        steps = Steps(graphs=args.graphs)
        matching = Matching(models, text, steps, config.stream.shift, replicas)
        train(matching, pool, progress, save)
    progress.note(done=True)


if __name__ == "__main__":
    main()
