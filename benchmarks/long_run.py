"""A video of minutes, twice from one seed: is it the same, and does time or memory drift?

    python -m benchmarks.random_box build/small.llvq --height 352 --width 640
    python -m benchmarks.long_run build/small.llvq --minutes 10 --out benchmarks/results

The reference of LongLive-2.0 ends at latent frame 1024, which is 170 seconds.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_box import write_random_box
from benchmarks.report import command_of, write_files
from benchmarks.watched_video import Watched, figures, new_watched
from llvq.backends.base import CPU
from llvq.bench.machine import device_text, versions
from llvq.bench.run import LEFT_OUT
from llvq.bench.stages import random_script
from llvq.checkpoints.random import tiny_config
from llvq.errors import LlvqError
from llvq.recipe import NVFP4
from llvq.runtime.device import TARGET_DEVICES
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable, open_runnable
from llvq.runtime.session import Chunk, Session

SEED, RUNS = 0, 2


def hashed(chunks: Iterator[Chunk], digest: Any) -> Iterator[Chunk]:
    """The same chunks; their latents and frames go into `digest` as they pass."""
    for chunk in chunks:
        digest.update(chunk.latents.view(torch.uint8).numpy())
        if chunk.frames is not None:
            digest.update(chunk.frames.numpy())
        yield chunk


def one_run(model: Executable, chunks: int, steps: int) -> dict[str, Any]:
    """Make the whole video. Seconds and bytes."""
    devices = list(dict.fromkeys([model.device, model.decodes_on]))
    video: Watched = new_watched("llvq", steps, model.facts.window_chunks, chunks, devices)
    digest, began = hashlib.sha256(), time.perf_counter()
    session = Session(model, random_script(model, chunks, SEED), seed=SEED, steps=steps)
    video.watch(hashed(iter(session), digest), began, devices)
    return figures(video) | {
        "digest": digest.hexdigest(),
        "latents": chunks * model.facts.frames_per_chunk,
    }


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("box", type=Path, help="with --tiny it is written first")
    parser.add_argument("--tiny", action="store_true", help="a random box of the tiny model")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a folder for long_run.json")
    options = parser.parse_args(given)
    try:
        if options.tiny:
            write_random_box(options.box, tiny_config(), CPU, NVFP4)
        box = open_runnable(options.box, hash_weights=False)
        device = TARGET_DEVICES[box.manifest["target"]]
        model = executable(box, device, stages=box.manifest["stages"].keys() - set(LEFT_OUT))
    except LlvqError as error:
        print(error, file=sys.stderr)
        return 2
    facts = model.facts
    per_chunk = facts.frames_per_chunk * facts.temporal_stride
    chunks = max(round(options.minutes * 60 * facts.fps / per_chunk), facts.window_chunks + 4)
    found: dict[str, Any] = {
        "command": command_of("long_run"),
        "versions": versions(),
        "device": device_text(model.device),
        "video": f"{facts.pixel_hw[0]}x{facts.pixel_hw[1]}, {chunks} chunks",
        "runs": [],
    }
    for _ in range(RUNS):
        found["runs"].append(one_run(model, chunks, options.steps))
        gc.collect()
        print(json.dumps(found["runs"][-1]), flush=True)
    found["same"] = len({run["digest"] for run in found["runs"]}) == 1
    print(f"{found['video']}: the same bytes again: {found['same']}")
    write_files(options.out, "long_run", found)
    return 0 if found["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
