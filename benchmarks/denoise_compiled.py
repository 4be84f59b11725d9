"""The plain model under torch.compile, within a limit of time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType

import torch

from benchmarks.denoise_models import Plain
from benchmarks.denoise_run import Run
from benchmarks.report import note
from llvq.bench.timing import Timer

COMPILE = ("none", "blocks", "whole")


class OutOfTime(BaseException):
    """No `except Exception` of a compiler may hold it."""


def time_compiled(state: Run, plain: Plain) -> None:
    """torch.compile, within its limit: each block once for all (`blocks`), or the whole model."""
    mode, limit = state.options.compile, state.options.compile_limit
    if mode == "none":
        return
    note(f"torch.compile of {mode}, at most {limit} s")
    model, began = plain.model, time.perf_counter()
    blocks = list(model.blocks)
    try:
        with time_limit(limit):
            if mode == "blocks":
                for place, block in enumerate(blocks):
                    model.blocks[place] = torch.compile(block)
            else:
                plain.model = torch.compile(model)
            plain.forward()
            Timer(state.device).synchronize()
        spent = time.perf_counter() - began
        row = {
            "name": f"torch.compile ({mode}), bf16",
            "time": asdict(state.forward(plain.forward)),
        }
        state.found["forwards"].append(row | {"note": f"compiled in {spent:.0f} s"})
    except OutOfTime:
        note(f"not compiled within {limit} s")
        state.found["compile"] = f"torch.compile ({mode}) was not done within {limit} s"
    plain.model = model
    for place, block in enumerate(blocks):
        model.blocks[place] = block


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
