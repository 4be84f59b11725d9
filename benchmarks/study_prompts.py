"""What the videos of a study show, and who can tell whether they do."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from benchmarks.study_runs import Judge
from examples.tiny_longlive.captions import caption, parse, sample_scene
from examples.tiny_longlive.identity import by_chunk
from llvq.quality.rollout import DEFAULT_PROMPTS

CALIBRATION_SEED, CALIBRATION_VIDEOS = 10_000, 8
CALIBRATION_PROMPTS = "prompts.txt"


def shots_of(options: argparse.Namespace, *, is_tiny: bool) -> dict[int, Sequence[str]]:
    """By seed: the prompts that were given, captions for tiny-longlive, or the defaults."""
    seeds = range(options.seeds)
    if options.prompt:
        return {seed: tuple(options.prompt) for seed in seeds}
    if is_tiny:
        return {seed: (caption(sample_scene(Random(seed))),) for seed in seeds}
    return {seed: (DEFAULT_PROMPTS[seed % len(DEFAULT_PROMPTS)],) for seed in seeds}


def judge_of(shots: Mapping[int, Sequence[str]]) -> Judge | None:
    """Who tells whether objects hold, if every prompt is a caption."""
    try:
        for prompt in (prompt for prompts in shots.values() for prompt in prompts):
            parse(prompt)
    except ValueError:
        return None
    return by_chunk


def write_calibration_prompts(folder: Path) -> None:
    """Captions, one per line, of scenes that no seed of a study has."""
    scenes = [sample_scene(Random(CALIBRATION_SEED + index)) for index in range(CALIBRATION_VIDEOS)]
    text = "\n".join(map(caption, scenes))
    (folder / CALIBRATION_PROMPTS).write_text(text, encoding="utf-8")
