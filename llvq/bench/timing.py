"""Time on a device: events on the stream of a GPU, the clock of the machine anywhere else.

Seconds throughout. Work on a GPU is asynchronous, so that marks are read after `synchronize`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Work done before a measurement: loading of kernels, handles, and clocks that go up.
WARMUP = 3


@dataclass(frozen=True)
class Spread:
    """Seconds of several runs of one thing. `p99` of fewer than a hundred is the slowest."""

    median: float
    p99: float
    runs: int


class Timer:
    """Marks points of the work that a device is given on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Seconds between two marks of one stream, which the device has passed."""
        return end - begin if self.device.type != "cuda" else begin.elapsed_time(end) / 1e3

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(
    calls: Sequence[Callable[[], Any]],
    device: torch.device,
    *,
    repeats: int,
    warmup: int = WARMUP,
) -> Spread:
    """Time `repeats` calls, in turn.

    `calls` do the same on inputs of their own: enough of them, and no cache holds the next one's.
    """
    timer, marks = Timer(device), []
    for index in range(warmup):
        calls[index % len(calls)]()
    timer.synchronize()
    for index in range(repeats):
        begin = timer.mark()
        calls[index % len(calls)]()
        marks.append((begin, timer.mark()))
    timer.synchronize()
    return spread([timer.between(begin, end) for begin, end in marks])


def spread(seconds: Sequence[float]) -> Spread:
    return Spread(quantile(seconds, 0.5), quantile(seconds, 0.99), len(seconds))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
