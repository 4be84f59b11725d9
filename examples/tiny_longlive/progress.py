"""How far a phase of training is, by the clock or by steps, and the log that it leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path

from torch import Tensor


class Progress:
    """`fraction` goes from 0 to 1 over `steps` if given (reproducible), else over `seconds`."""

    def __init__(self, log: Path, *, seconds: float, steps: int | None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.seconds, self.steps = log, seconds, steps
        self.step, self.began = 0, time.perf_counter()
        log.write_text("")

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    @property
    def fraction(self) -> float:
        return self.step / self.steps if self.steps else self.elapsed / self.seconds

    def advance(self, every: int, **numbers: float | Tensor) -> bool:
        """Count a step and log `numbers` (tensors or floats) now and then; False at the end.

        Reading a tensor waits for the device, so only every `every` steps.
        """
        if self.step % every == 0:
            self.note(**{name: float(f"{float(n):.5g}") for name, n in numbers.items()})
        self.step += 1
        return self.fraction < 1

    def note(self, **values: object) -> None:
        """One JSON line, also on the terminal."""
        line = json.dumps({"step": self.step, "seconds": round(self.elapsed, 1), **values})
        with self.log.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
