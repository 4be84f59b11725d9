"""The main job from end to end, on any machine, with a checkpoint that it makes itself.

`make demo` runs this. It writes a small random-weight checkpoint in LongLive-2.0's format and then
types what a user types: quantize, compare, export, verify, run. The weights are random, so the
video is noise; what there is to see is that four bits change it little, and what each layer lost.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from llvq.checkpoints.random import tiny_config, write_random_checkpoint
from llvq.models.config import ModelConfig

PROMPTS = ("a red kite over a green hill", "a blue boat on a lake at night")


def demo_config() -> ModelConfig:
    """The tiny configuration with room for a sentence: its tokenizer has a token per byte."""
    config = tiny_config()
    return replace(config, dit=replace(config.dit, text_len=128))


def llvq(*arguments: str, folder: Path) -> None:
    """Show a command, then run it, as a user would in that folder."""
    print(f"\n$ llvq {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "llvq", *arguments]
    subprocess.run(command, check=True, cwd=folder)


def run(folder: Path) -> None:
    """Every step, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"writing a random checkpoint in LongLive-2.0's format to {folder}/", flush=True)
    write_random_checkpoint(folder, demo_config(), seed=0)
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    llvq("quantize", "model.pt", "-o", "model.nvfp4", "--force", folder=folder)
    llvq("compare", "model.pt", "model.nvfp4", "-o", "report", folder=folder)
    llvq("export", "model.nvfp4", "--target", "cpu", "-o", "model.llvq", "--force", folder=folder)
    llvq("verify", "model.llvq", folder=folder)
    llvq("run", "model.llvq", *prompts, "--seconds", "2", "-o", "video.mp4", "--force",
         folder=folder)  # fmt: skip


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
