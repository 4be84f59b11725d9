"""How long each stage of a model takes: the stages of an executable, with a stopwatch each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from llvq.bench.timing import Spread, Timer, spread
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.session import Prompt, Session

SEED = 0


@dataclass(frozen=True)
class StageTime:
    """Calls of one stage while the window is full; `per_chunk` calls belong to a chunk."""

    stage: str
    per_chunk: float
    time: Spread


class TimedStage:
    """A stage that marks when it begins and ends, and keeps what it was last called with."""

    def __init__(self, stage: CompiledStage, timer: Timer) -> None:
        self.stage, self.timer = stage, timer
        self.marks: list[tuple[Any, Any]] = []
        self.given: Mapping[str, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.given = values
        begin = self.timer.mark()
        results = self.stage(values)
        self.marks.append((begin, self.timer.mark()))
        return results

    def spread(self) -> Spread:
        return spread([self.timer.between(begin, end) for begin, end in self.marks])


def random_script(model: Executable, chunks: int, seed: int = SEED) -> list[Prompt]:
    """One prompt for all chunks: embeddings from a seed."""
    facts, random = model.facts, torch.Generator().manual_seed(seed)
    embeds = torch.randn(1, facts.text_len, facts.text_dim, generator=random)
    return [Prompt(embeds.to(model.device, facts.torch_dtype))] * chunks


def with_stopwatch(model: Executable, timer: Timer) -> tuple[Executable, dict[str, TimedStage]]:
    timed = {name: TimedStage(stage, timer) for name, stage in model.stages.items()}
    return replace(model, stages=cast("dict[str, CompiledStage]", timed)), timed


def time_stages(
    model: Executable,
    *,
    chunks: int,
    steps: int | None,
    seed: int,
    tell: Callable[[int], None],
) -> tuple[list[StageTime], Mapping[str, Tensor]]:
    """Each stage alone, one after the other, over `chunks` chunks after the window is full.

    They are launched op by op: a replay of a CUDA graph runs no stage that could be timed.
    `tell` is given the chunks that are done. Also gives what `denoise` was last called with.
    """
    timer, full = Timer(model.device), model.facts.window_chunks
    timed_model, timed = with_stopwatch(model, timer)
    session = Session(
        timed_model,
        random_script(model, full + chunks, seed),
        seed=seed,
        steps=steps,
        latents_only="decode" not in model.stages,
        decode_depth=0,
        cuda_graphs=False,
    )
    for chunk in session:
        if chunk.index == full - 1:
            for stage in timed.values():
                stage.marks.clear()
        tell(chunk.index + 1)
    timer.synchronize()
    rows = [
        StageTime(name, len(stage.marks) / chunks, stage.spread())
        for name, stage in timed.items()
        if stage.marks
    ]
    return rows, timed["denoise"].given
