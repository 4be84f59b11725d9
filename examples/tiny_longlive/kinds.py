"""Which kinds of objects hold: every shape with every move, small and large, alone in its video.

    python -m examples.tiny_longlive.kinds --out examples/tiny_longlive/weights --device cpu

A table for every number of steps. On a CPU 64 videos take some ten minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import torch

from examples.tiny_longlive.captions import (
    DIRECTIONS,
    GOING,
    MOVES,
    ROUND,
    SHAPES,
    SIZES,
    TURNING,
    Scene,
    sample_scene,
)
from examples.tiny_longlive.model import read_denoiser, read_vae, tiny_longlive
from examples.tiny_longlive.spans import mean_of
from examples.tiny_longlive.validation import watched

SEED, CHUNKS = 20_000_000, 3
BATCH = 8  # videos at once
Kind = tuple[str, str]  # shape and move
KINDS: Sequence[Kind] = tuple(
    (shape, move) for shape, move in product(SHAPES, MOVES)
    if not (shape in ROUND and move in TURNING)
)  # fmt: skip


def scenes_of_kinds() -> list[tuple[Kind, Scene]]:
    """One small and one large object of each kind, over backgrounds by SEED."""
    random, found = Random(SEED), []
    for (shape, move), size in product(KINDS, SIZES):
        scene = sample_scene(random)
        direction = random.choice(DIRECTIONS) if move in GOING else ""
        thing = replace(scene.things[0], shape=shape, size=size, move=move, direction=direction)
        found.append(((shape, move), replace(scene, things=(thing,))))
    return found


def table(holds: Mapping[Kind, Sequence[float | None]]) -> str:
    """Shapes by moves, and the means of both."""
    lines = [["", *MOVES, "all"]]
    for shape in (*SHAPES, "all"):
        cells = [
            mean_of(v for (s, m), values in holds.items() if shape in (s, "all")
                    and move in (m, "all") for v in values)
            for move in (*MOVES, "all")
        ]  # fmt: skip
        lines.append([shape, *("-" if cell is None else f"{cell:.2f}" for cell in cells)])
    return "\n".join(
        line[0].ljust(9) + "".join(cell.rjust(9) for cell in line[1:]) for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the checkpoint")
    parser.add_argument("--steps", type=int, nargs="+", default=(4,))
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    config = tiny_longlive()
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    modules = (*read_denoiser(args.out, config), read_vae(args.out, config))
    dit, text, vae = (module.to(args.device, dtype) for module in modules)
    kinds, scenes = zip(*scenes_of_kinds(), strict=True)
    for steps in args.steps:
        found = [
            video
            for start in range(0, len(scenes), BATCH)
            for video in watched(
                config, dit, text, vae, scenes[start : start + BATCH],
                steps=steps, chunks=CHUNKS, seed=start,
            )
        ]  # fmt: skip
        holds: dict[Kind, list[float | None]] = {kind: [] for kind in KINDS}
        for kind, video in zip(kinds, found, strict=True):
            holds[kind] += video.objects[0].holds
        print(f"{steps} steps: share of frames in which the object holds", flush=True)
        print(f"{table(holds)}\n", flush=True)


if __name__ == "__main__":
    main()
