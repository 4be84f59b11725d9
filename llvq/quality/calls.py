"""The error of one op's output on the inputs of the BF16 run, call by call.

The order of a stage's calls says when each was made: `denoise` runs once for every step of every
chunk, `refresh` once for every chunk, when it is clean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Protocol

from llvq.quality.metrics import NOTHING, Energies


@dataclass
class CallErrors:
    """Errors by stage, in the order of its calls; NOTHING where a call had nothing to lose."""

    stages: dict[str, list[Energies]] = field(default_factory=dict)

    def add(self, stage: str, found: Energies) -> None:
        self.stages.setdefault(stage, []).append(found)

    @property
    def calls(self) -> int:
        return sum(found != NOTHING for found in self._all())

    @property
    def total(self) -> Energies:
        return sum(self._all(), NOTHING)

    def moments(self, steps: int) -> dict[str, list[Energies]]:
        """Chunk by chunk: of `step 1`, `step 2`, ... and of `refresh`, as far as it ran in them."""
        denoise, refresh = (self.stages.get(stage, []) for stage in ("denoise", "refresh"))
        named = {f"step {step + 1}": denoise[step::steps] for step in range(steps)}
        return {name: calls for name, calls in (named | {"refresh": refresh}).items() if calls}

    def _all(self) -> Iterator[Energies]:
        return chain.from_iterable(self.stages.values())


class Measured(Protocol):
    """An op of the model whose output was measured."""

    @property
    def kind(self) -> str: ...

    @property
    def output(self) -> CallErrors: ...


def median_by_moment(ops: Sequence[Measured], steps: int) -> dict[str, list[float]]:
    """Of every moment, chunk by chunk: the median SQNR in dB over ops, NaN where none can tell."""
    by_op = [op.output.moments(steps) for op in ops]
    named = dict.fromkeys(name for moments in by_op for name in moments)
    return {
        name: [
            _median_db(calls)
            for calls in zip(*(moments[name] for moments in by_op if name in moments), strict=True)
        ]
        for name in named
    }


def kinds_by_moment(ops: Sequence[Measured], steps: int) -> dict[str, dict[str, Energies]]:
    """Of every kind of op and moment, the energies of all blocks and chunks."""
    found: dict[str, dict[str, Energies]] = {}
    for op in ops:
        sums = found.setdefault(op.kind, {})
        for name, calls in op.output.moments(steps).items():
            sums[name] = sum(calls, sums.get(name, NOTHING))
    return found


def _median_db(calls: Sequence[Energies]) -> float:
    known = [found.sqnr_db for found in calls if found != NOTHING]
    return median(known) if known else math.nan
