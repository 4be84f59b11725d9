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
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.report import write_files
from benchmarks.studies import KV, WEIGHTS
from benchmarks.study_jobs import in_jobs
from benchmarks.study_parts import Parts, fingerprint
from benchmarks.study_rows import as_json
from benchmarks.study_runs import Study
from benchmarks.study_text import as_text, versions
from examples.tiny_longlive.model import TRAINED
from llvq.calibrate.modelopt_backend import modelopt_version
from llvq.checkpoints.model import open_model
from llvq.errors import LlvqError, OutputError, SessionError, TargetError

RESULTS = Path(__file__).parent / "results"


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
    found = {**head, "rows": as_json(rows, rows[0].nbytes)}
    write_files(options.out, name, found, text)
    parts.remove()
    print(text)
    return 0


def decided(study: Study, options: argparse.Namespace) -> str:
    """A name for all that decides the numbers of a video. Raises LlvqError."""
    bundle = open_model(options.checkpoint).bundle
    chosen = {name: getattr(options, name) for name in ("chunks", "steps", "device", "prompt")}
    return fingerprint(bundle, {"study": study.title, **chosen, "versions": versions()})


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


if __name__ == "__main__":
    sys.exit(main())
