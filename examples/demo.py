"""The main job from end to end, on any machine, with the small model of this repository.

`make demo` runs this. It takes tiny-longlive, which was trained to show coloured shapes and is in
LongLive-2.0's format, and types what a user types: quantize, compare, export, verify, run. There is
a video to see of what was asked for, made in four bits, and a report of what they cost. A detector
then looks whether the objects of the prompts are there.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from examples.tiny_longlive.model import TRAINED
from examples.tiny_longlive.samples import ONE_SHOT

ROOT = Path(__file__).parents[1]
PROMPTS = (ONE_SHOT[3], ONE_SHOT[5])  # two shots, with a cut between them


def typed(module: str, *arguments: str, folder: Path) -> None:
    """Show a command, then run it, as a user would in that folder."""
    shown = "llvq" if module == "llvq" else f"python -m {module}"
    print(f"\n$ {shown} {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, cwd=folder)


def run(folder: Path) -> None:
    """Every step, in `folder`."""
    print(f"tiny-longlive, 39 MB in bf16, is copied to {folder}/tiny-longlive", flush=True)
    shutil.copytree(TRAINED, folder / "tiny-longlive", dirs_exist_ok=True)
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    report = ("-o", "report", "--force")
    for command in (
        ("quantize", "tiny-longlive", "-o", "model.nvfp4", "--force"),
        ("compare", "tiny-longlive", "model.nvfp4", "--frames", *prompts, *report),
        ("export", "model.nvfp4", "--target", "cpu", "-o", "model.llvq", "--force"),
        ("verify", "model.llvq"),
        ("run", "model.llvq", *prompts, "--seconds", "4", "-o", "video.mp4", "--force"),
    ):
        typed("llvq", *command, folder=folder)
    video = str((folder / "video.mp4").resolve())
    typed("examples.tiny_longlive.judge", video, *prompts, folder=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to put everything")
    folder = parser.parse_args().folder
    start = time.perf_counter()
    run(folder)
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s. Look at {folder}/video.mp4 and {folder}/report/report.html")


if __name__ == "__main__":
    main()
