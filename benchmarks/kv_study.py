"""What the format of the KV cache does to long videos: one table, over seeds, with spread.

    python -m benchmarks.kv_study --seeds 3 --chunks 16 --name kv_study
    python -m benchmarks.kv_study path/to/checkpoint --device cuda --jobs 8 --seeds 8 --chunks 60
    python -m benchmarks.kv_study --weights --name weight_study

Weights stay in bf16, so that only the cache differs; `--weights` is the same study of the rules
for block scales, with pages in bf16. Every variant makes the videos of the bf16 model from the same
noise and prompts, free-running: each continues from its own history. Two rows say how to read the
others: bf16 with another attention implementation, which is noise that every server has, and bf16
from another seed, which is another video. The first chunk has no history: a study of the cache
leaves it out.

Where prompts are captions of tiny-longlive, a detector looks for the objects that they name:
identity is the share of objects and frames that show one in its colour, shape and size. Rows that
are calibrated need ModelOpt, and see other prompts and seeds than those that are judged.

With `--jobs` seeds are shared out among processes, and processes among GPUs. What was measured is
kept until the tables are written: the same command goes on where it was interrupted.

Writes NAME.txt and NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, repeat
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch

import llvq
from benchmarks.studies import KV, WEIGHTS
from benchmarks.study_parts import Parts, fingerprint
from benchmarks.study_rows import CLOSE, Row, as_json, joined, table
from benchmarks.study_runs import Judge, Setting, Study, calibrated, run_study, setting
from examples.tiny_longlive.captions import caption, parse, sample_scene
from examples.tiny_longlive.identity import by_chunk
from examples.tiny_longlive.model import TRAINED
from llvq.calibrate.modelopt_backend import modelopt_version
from llvq.checkpoints.checkpoint import json_beside
from llvq.checkpoints.model import open_model
from llvq.errors import LlvqError, OutputError, SessionError, TargetError
from llvq.quality.rollout import DEFAULT_PROMPTS

CALIBRATION_SEED, CALIBRATION_VIDEOS = 10_000, 8
CALIBRATION_PROMPTS = "prompts.txt"
RESULTS = Path(__file__).parent / "results"


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


def header(at: Setting, study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """What was run, on what."""
    facts, gpu = at.plain.facts, at.plain.device.type == "cuda"
    device = torch.cuda.get_device_name(at.plain.device) if gpu else f"cpu ({platform.machine()})"
    random = json_beside(at.model.bundle.dit, "config.json").get("random_weights") is True
    height, width = facts.pixel_hw
    return {
        "command": shlex.join(["python", "-m", "benchmarks.kv_study", *sys.argv[1:]]),
        "study": study.title,
        "random_weights": random,
        "video": f"{height}x{width}, {options.chunks} chunks of {facts.frames_per_chunk} latent "
        f"frames, window of {facts.window_chunks}, {at.steps} steps, {options.seeds} seeds",
        "versions": versions(),
        "device": device,
    }


def as_text(head: Mapping[str, Any], rows: Sequence[Row], study: Study) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    random = "The weights are random: no number here says how a trained model fares.\n"
    told = "identity" in rows[0].samples[0].numbers
    identity = "Identity: what share of objects hold; its drift.\n" if told else ""
    judged = " Chunk 0 has no history and is left out." if study.first else ""
    return (
        f"$ {head['command']}\n{head['device']}; {versions}\n\n{study.title}\n{head['video']}\n"
        + (random if head["random_weights"] else "")
        + f"Against bf16 of the same noise and prompts, free-running.{judged}\n"
        "Mean over seeds and sample standard deviation; worst, median and last are of the chunks\n"
        f"of a video, as is how many come before one below {CLOSE:g} dB; drift is SQNR's slope.\n"
        f"{identity}\n{table(rows, rows[0].nbytes)}\n"
    )


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", default=TRAINED, help="default: tiny-longlive")
    add("--weights", action="store_true", help="study weight rules instead of page formats")
    add("--seeds", type=_positive, default=3, help="videos per variant (default 3)")
    add("--chunks", type=_positive, default=8, help="length of a video (default 8)")
    add("--steps", type=_positive, help="sampling steps (default: the model's)")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--jobs", type=_positive, default=1, help="processes at once (default 1)")
    add("--prompt", action="append", help="a shot of every video; may be given more than once")
    add("--name", help="of the files (default: kv_study or weight_study)")
    add("--out", type=Path, default=RESULTS, help="a folder (default: benchmarks/results)")
    return parser.parse_args(given)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    study = WEIGHTS if options.weights else KV
    name = options.name or ("weight_study" if options.weights else "kv_study")
    try:
        check(study, options)
        parts = Parts(options.out / f".{name}-{decided(study, options)}")
        head, rows = in_jobs(study, options, parts)
    except LlvqError as error:
        print(error, file=sys.stderr)
        return 2
    text = as_text(head, rows, study)
    document = json.dumps({**head, "rows": as_json(rows, rows[0].nbytes)}, indent=1) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.txt").write_text(text, encoding="utf-8")
    (options.out / f"{name}.json").write_text(document, encoding="utf-8")
    parts.remove()
    print(text)
    return 0


def decided(study: Study, options: argparse.Namespace) -> str:
    """A name for all that decides the numbers of a video. Raises LlvqError."""
    bundle = open_model(options.checkpoint).bundle
    chosen = {name: getattr(options, name) for name in ("chunks", "steps", "device", "prompt")}
    return fingerprint(bundle, {"study": study.title, **chosen, "versions": versions()})


def versions() -> dict[str, str]:
    return {
        "llvq": llvq.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def in_jobs(
    study: Study, options: argparse.Namespace, parts: Parts
) -> tuple[dict[str, Any], list[Row]]:
    """Header and rows, by as many processes as are asked for. Raises LlvqError."""
    calibrate_once(study, options, parts.folder)
    jobs = min(options.jobs, options.seeds)
    if jobs == 1:
        return studied(study, options, parts, range(options.seeds), next(devices(options)))
    shares = [range(options.seeds)[job::jobs] for job in range(jobs)]
    with ProcessPoolExecutor(jobs, get_context("spawn"), _share_cores, (jobs,)) as pool:
        same = repeat(study), repeat(options), repeat(parts)
        made = [*pool.map(studied, *same, shares, devices(options))]
    return made[0][0], joined([rows for _, rows in made])


def calibrate_once(study: Study, options: argparse.Namespace, folder: Path) -> None:
    """What rows need of ModelOpt, in `folder`, where all processes find it. Raises LlvqError."""
    variants = [variant for variant in study.variants if variant.calibrate]
    if variants:
        folder.mkdir(parents=True, exist_ok=True)
        write_calibration_prompts(folder)
        at = opened(options, folder, (), next(devices(options)))
        for variant in variants:
            calibrated(at, variant)
            print(f" calibrated {variant.name}", file=sys.stderr)


def _share_cores(jobs: int) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))


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


def check(study: Study, options: argparse.Namespace) -> None:
    """What can be refused before anything is opened. Raises LlvqError."""
    if options.chunks <= study.first:
        raise SessionError(
            f"a video of {options.chunks} chunk has nothing to judge",
            because="the first chunk has no history, so no cache",
            fix=f"use --chunks {study.first + 1} or more",
        )
    if options.out.exists() and not options.out.is_dir():
        raise OutputError(
            "cannot write the tables", where=str(options.out),
            because="it is not a folder", fix="name one with --out",
        )  # fmt: skip
    if options.device == "cuda" and not torch.cuda.is_available():
        raise TargetError(
            "cannot run videos on cuda", because="torch sees no GPU here", fix="use --device cpu"
        )
    if any(variant.calibrate for variant in study.variants):
        modelopt_version()


def opened(
    options: argparse.Namespace, folder: Path, seeds: Collection[int], device: str
) -> Setting:
    """The model that was named, and what is made of it. `folder` is for calibrations. Raises
    LlvqError."""
    shots = shots_of(options, is_tiny=options.checkpoint.resolve() == TRAINED)
    judge = judge_of(shots)
    return setting(
        open_model(options.checkpoint),
        {seed: shots[seed] for seed in seeds},
        chunks=options.chunks,
        device=device,
        steps=options.steps,
        judge=judge,
        calibrations=folder,
        calibration_prompts=folder / CALIBRATION_PROMPTS if judge else None,
    )


if __name__ == "__main__":
    sys.exit(main())
