"""Compile a LongLive-2.0 checkpoint and run it, from Python: what the commands do, step by step.

    python -m examples.compile_longlive out --checkpoint model_bf16.pt --prompt "a red kite"

Without a checkpoint it writes a small one with random weights, whose video is noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llvq.backends.base import CPU
from llvq.box import export_box, write_program
from llvq.checkpoints.model import open_model
from llvq.checkpoints.random import tiny_config, write_random_checkpoint
from llvq.compiler import Compiled, compile_model
from llvq.models.config import ModelConfig
from llvq.recipe import NVFP4
from llvq.runtime.generate import Request, open_session
from llvq.runtime.load import open_checked
from llvq.runtime.video import VideoWriter

PROMPTS = ["a red kite over a hill", "a blue boat on a lake"]


def compile_checkpoint(checkpoint: Path, out: Path, size: tuple[int, int] | None = None) -> Path:
    """Checkpoint -> program -> box for the CPU; `size` is (height, width) in pixels."""
    model = open_model(checkpoint, size=size)
    print(*model.notes, sep="\n")
    compiled = compile_model(model.config, NVFP4)
    print_passes(compiled)
    program, box = out / "model.nvfp4", out / "model.llvq"
    tokenizer = model.bundle.tokenizer
    write_program(compiled, model.source, program, tokenizer=tokenizer, overwrite=True)
    box_id, _ = export_box(open_checked(program, kinds=("program",)), CPU, box, overwrite=True)
    print(f"{box} {box_id}")
    return box


def print_passes(compiled: Compiled) -> None:
    """The pass table: what every rule saw, and what became of it."""
    for report in compiled.reports:
        counts = (f"{report.total(what)} {what}" for what in ("sites", "hits", "excluded"))
        print(f"{report.name:20} {report.level:10} {report.numerics:7} {', '.join(counts)}")


def generate(box: Path, video: Path, prompts: list[str], seconds: float) -> None:
    """Box -> mp4, one chunk after the other; the prompts share the video evenly."""
    session = open_session(box, Request(tuple(prompts), seconds, seed=1)).session
    height, width = session.facts.pixel_hw
    with VideoWriter(video, fps=session.facts.fps, height=height, width=width) as writer:
        for chunk in session:
            assert chunk.frames is not None
            writer.append(chunk.frames)
            print(f"chunk {chunk.index}: {len(chunk.frames)} frames")


def random_checkpoint(folder: Path, config: ModelConfig) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_random_checkpoint(folder, config, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for program, box and video")
    parser.add_argument("--checkpoint", type=Path, help="a LongLive-2.0 denoiser (.pt)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--prompt", action="append", help="once per shot")
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    checkpoint = args.checkpoint or random_checkpoint(args.out / "checkpoint", tiny_config())
    size = (128, 192) if args.checkpoint is None else None
    box = compile_checkpoint(checkpoint, args.out, tuple(args.size) if args.size else size)
    generate(box, args.out / "video.mp4", args.prompt or PROMPTS, args.seconds)


if __name__ == "__main__":
    main()
