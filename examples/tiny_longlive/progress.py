"""How far a phase of training is, by the clock or by steps, and the log that it leaves."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from torch import Tensor

from examples.tiny_longlive.replicas import ALONE, Replicas

SAVE_SECONDS = 120.0  # so that a killed call loses little


class Progress:
    """One call of a phase, which is part `part` = (number, of how many) of it.

    Within the call `local` goes from 0 to 1 over `steps` if given (reproducible), else over
    `seconds`; `fraction` does so over all parts. Logs of several calls follow each other. Replicas
    go by the clock of the first, which writes the log; it is read once a step.
    """

    def __init__(
        self,
        log: Path,
        *,
        seconds: float,
        steps: int | None,
        part: tuple[int, int] = (1, 1),
        replicas: Replicas = ALONE,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.seconds, self.steps, self.part = log, seconds, steps, part
        self.replicas = replicas
        self.step, self.began, self.elapsed, self.saved = 0, time.perf_counter(), 0.0, 0.0

    @property
    def local(self) -> float:
        return self.step / self.steps if self.steps else self.elapsed / self.seconds

    @property
    def fraction(self) -> float:
        number, count = self.part
        return (number - 1 + min(self.local, 1.0)) / count

    def advance(self, every: int, **numbers: float | Tensor) -> bool:
        """Count a step and log `numbers` (tensors or floats) now and then; False at the end.

        Reading a tensor waits for the device, so only every `every` steps.
        """
        if self.step % every == 0:
            self.note(**{name: float(f"{float(n):.5g}") for name, n in numbers.items()})
        self.step += 1
        self.elapsed = self.replicas.agree(self._now())
        return self.local < 1

    def save_is_due(self) -> bool:
        """True once every SAVE_SECONDS."""
        if self.elapsed - self.saved < SAVE_SECONDS:
            return False
        self.saved = self.elapsed
        return True

    def note(self, **values: object) -> None:
        """One JSON line, also on the terminal."""
        if not self.replicas.is_first:
            return
        head = {"part": self.part[0], "step": self.step, "seconds": round(self._now(), 1)}
        line = json.dumps(head | values)
        with self.log.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def _now(self) -> float:
        return time.perf_counter() - self.began


def add_arguments(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    """What the commands of all phases take."""
    parser.add_argument("--out", type=Path, required=True, help="the folder of the checkpoint")
    parser.add_argument("--seconds", type=float, default=seconds, help="of this call")
    parser.add_argument("--steps", type=int, help="instead of seconds: exactly reproducible")
    parser.add_argument(
        "--part",
        type=_part,
        default=(1, 1),
        metavar="K/N",
        help="this call is the K-th of N: the first begins anew, every other one continues from "
        "the weights in --out, with other samples; rates fall over all of them",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gpus", type=int, default=1, help="that train together, one process each")


def part_seed(args: argparse.Namespace) -> int:
    """A seed of this call's own, far from those of the others."""
    return args.seed + 1000 * (args.part[0] - 1)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    try:
        part = int(number), int(count)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 2/3") from error
    if not 1 <= part[0] <= part[1]:
        raise argparse.ArgumentTypeError(f"{text}: parts are counted from 1 to the last")
    return part
