"""The report of `llvq compare --frames`, with the identity of objects in it.

    python -m examples.tiny_longlive.compare CHECKPOINT PROGRAM -o report --chunks 16 \\
        --prompt "A large red ball on the left waits, over a gray plain background."

Both sides make the same video, and the detector of judge.py looks for the objects of the prompts in
both: curves of identity, colour and shape over the chunks, beside everything else of the report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.tiny_longlive.identity import curves
from examples.tiny_longlive.judge import scene_of
from llvq.cli.output import check_output
from llvq.cli.table import task_bars
from llvq.errors import LlvqError
from llvq.quality.compare import Request, compare
from llvq.quality.report import write_report


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.tiny_longlive.compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("program", type=Path, help="what llvq quantize made of CHECKPOINT")
    add("--prompt", action="append", required=True, help="one per shot; repeatable")
    add("--chunks", type=int, default=8, help="length of the video (default 8)")
    add("--seed", type=int, default=0, help="of the noise, for both sides")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("-o", "--out", type=Path, default=Path("report"), help="a folder (default: report)")
    add("--force", action="store_true", help="overwrite it")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    try:
        for prompt in options.prompt:
            scene_of(prompt)
        check_output(options.out, force=options.force)
        request = Request(
            tuple(options.prompt), options.chunks, options.seed,
            device=options.device, frames=True, judge=curves,
        )  # fmt: skip
        with task_bars() as progress:
            found = compare(options.checkpoint, options.program, request, progress=progress)
        page, _ = write_report(found, options.out)
    except LlvqError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
