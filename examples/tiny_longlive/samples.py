"""What is looked at after a phase: fixed prompts, short and a minute long, with and without cut.

    python -m examples.tiny_longlive.samples --out runs/tiny --name ar-1 --steps 4 24

The detector's judgement of other prompts' videos goes to the terminal and to judged.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.tiny_longlive.model import read_denoiser, read_vae, tiny_longlive
from examples.tiny_longlive.rollout import decode_frames, generate
from examples.tiny_longlive.sheets import spread, write_sheet
from examples.tiny_longlive.validation import judged
from llvq.models.config import ModelConfig
from llvq.models.dit import CausalWanDit
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae

ONE_SHOT = (
    "A large red ball on the left drifts right, over a gray striped background.",
    "A small blue star at the top spins and a large yellow square on the right waits, "
    "over a brown plain background that scrolls left.",
    "A large green triangle at the bottom left tumbles up, a small white ring in the center hops "
    "and a small orange cross at the top right circles, over a navy dotted background.",
    "A large purple star in the center circles and a small cyan ball at the bottom right drifts "
    "up, over a olive checkered background that scrolls up. The camera pans sideways.",
    "A small red square at the top left drifts down and a small green ring at the bottom hops, "
    "over a teal plain background. The camera pans up and down.",
    "A large orange cross in the center spins, "
    "over a maroon striped background that scrolls right.",
)
TWO_SHOTS = (
    (ONE_SHOT[0], ONE_SHOT[1]),
    (ONE_SHOT[3], ONE_SHOT[5]),
    (ONE_SHOT[2], ONE_SHOT[4]),
)
LENGTHS = {"short": 4, "minute": 90}  # chunks


def write_samples(
    folder: Path,
    name: str,
    config: ModelConfig,
    dit: CausalWanDit,
    text: TextEncoder,
    vae: WanVae,
    steps: Sequence[int],
    lengths: dict[str, int] | None = None,
) -> None:
    """Sheets of all lengths at the first of `steps`, and the short ones at the others."""
    one_shot = [[prompt] for prompt in ONE_SHOT]
    for count in steps:
        for label, chunks in (lengths or LENGTHS).items():
            if label == "minute" and count != steps[0]:
                continue
            for kind, scripts in (("", one_shot), ("-cut", TWO_SHOTS)):
                latents = generate(config, dit, text, scripts, chunks, steps=count, seed=1)
                frames = spread(4 * latents.shape[1] - 3, 10)
                rows = decode_frames(vae, latents, frames)
                write_sheet(folder / f"{name}-{label}{kind}-{count}steps.png", list(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the checkpoint")
    parser.add_argument("--name", required=True, help="what the names of the sheets begin with")
    parser.add_argument("--steps", type=int, nargs="+", default=(4, 2))
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    config = tiny_longlive()
    dit, text = read_denoiser(args.out, config)
    modules = (dit, text, read_vae(args.out, config))
    dit, text, vae = (module.to(args.device, torch.bfloat16) for module in modules)
    write_samples(args.out, args.name, config, dit, text, vae, args.steps)
    for count in args.steps:
        found = judged(config, dit, text, vae, steps=count)
        line = json.dumps({"name": args.name, "steps": count, **found})
        with (args.out / "judged.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
