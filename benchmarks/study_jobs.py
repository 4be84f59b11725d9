"""A study in processes: seeds are shared out among them, and they among the GPUs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, repeat
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from benchmarks.study_parts import Parts
from benchmarks.study_prompts import (
    CALIBRATION_PROMPTS,
    judge_of,
    shots_of,
    write_calibration_prompts,
)
from benchmarks.study_rows import Row, joined
from benchmarks.study_runs import Calibrations, Setting, Study, run_study, setting
from benchmarks.study_text import header
from examples.tiny_longlive.model import TRAINED
from llvq.checkpoints.model import open_model


def in_jobs(
    study: Study, options: argparse.Namespace, parts: Parts
) -> tuple[dict[str, Any], list[Row]]:
    """Header and rows, by as many processes as are asked for. Raises LlvqError."""
    calibrate_once(study, options, parts.folder)
    jobs = min(options.jobs, options.seeds)
    if jobs == 1:
        return studied(study, options, parts, range(options.seeds), next(devices(options)))
    shares = [range(options.seeds)[job::jobs] for job in range(jobs)]
    threads = max(1, torch.get_num_threads() // jobs)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, begin_process, (threads,)) as pool:
        same = repeat(study), repeat(options), repeat(parts)
        made = [*pool.map(studied, *same, shares, devices(options))]
    return made[0][0], joined([rows for _, rows in made])


def begin_process(threads: int) -> None:
    """One of a pool's: with its share of the cores, and ended when the pool's own is killed."""
    torch.set_num_threads(threads)
    parent = parent_process()
    assert parent is not None
    Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    # Not sys.exit, which would end this thread alone.
    os._exit(1)


def calibrate_once(study: Study, options: argparse.Namespace, folder: Path) -> None:
    """What rows need of ModelOpt, in `folder`, where all processes find it. Raises LlvqError."""
    variants = [variant for variant in study.variants if variant.calibrate]
    if variants:
        folder.mkdir(parents=True, exist_ok=True)
        write_calibration_prompts(folder)
        model, calibrations = open_model(options.checkpoint), calibrations_in(folder, options)
        for variant in variants:
            calibrations.of(model, variant)
            print(f" calibrated {variant.name}", file=sys.stderr)


def calibrations_in(folder: Path, options: argparse.Namespace) -> Calibrations:
    """Of captions, if those are what the videos of the study are of."""
    captions = judge_of(shots_of(options, is_tiny=is_tiny(options))) is not None
    return Calibrations(folder, folder / CALIBRATION_PROMPTS if captions else None, options.device)


def is_tiny(options: argparse.Namespace) -> bool:
    return options.checkpoint.resolve() == TRAINED


def devices(options: argparse.Namespace) -> Iterator[str]:
    """For one job after the other, without end."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return cycle(gpus if options.device == "cuda" else ["cpu"])


def studied(
    study: Study, options: argparse.Namespace, parts: Parts, seeds: Collection[int], device: str
) -> tuple[dict[str, Any], list[Row]]:
    """The study of some of the seeds. Raises LlvqError."""
    at = opened(options, parts.folder, seeds, device)
    return header(at, study, options), run_study(study, at, parts)


def opened(
    options: argparse.Namespace, folder: Path, seeds: Collection[int], device: str
) -> Setting:
    """The model that was named, and what is made of it. `folder` is for calibrations. Raises
    LlvqError."""
    shots = shots_of(options, is_tiny=is_tiny(options))
    return setting(
        open_model(options.checkpoint),
        {seed: shots[seed] for seed in seeds},
        chunks=options.chunks,
        device=device,
        steps=options.steps,
        judge=judge_of(shots),
        calibrations=calibrations_in(folder, options),
    )
