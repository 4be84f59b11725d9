"""Stages with a stopwatch: they compute what they did, and every call of a full window counts."""

from __future__ import annotations

import torch

from llvq.bench.stages import random_script, time_stages, with_stopwatch
from llvq.bench.timing import Timer
from llvq.runtime.executable import Executable
from llvq.runtime.session import Session


def test_every_stage_is_counted_once_the_window_is_full(executable: Executable) -> None:
    told: list[int] = []
    rows, given = time_stages(executable, chunks=2, steps=3, seed=0, tell=told.append)
    per_chunk = {row.stage: row.per_chunk for row in rows}
    assert per_chunk == {"denoise": 3, "refresh": 1, "decode": 2}
    assert all(0 < row.time.median <= row.time.p99 for row in rows)
    assert {row.stage: row.time.runs for row in rows} == {"denoise": 6, "refresh": 2, "decode": 4}
    assert told == list(range(1, executable.facts.window_chunks + 3))
    assert given["page_table"].shape == (executable.facts.window_chunks - 1,)


def test_a_stopwatch_changes_nothing(executable: Executable) -> None:
    timed, stages = with_stopwatch(executable, Timer(executable.device))
    script = random_script(executable, 2, seed=5)
    plain, watched = (list(Session(model, script, steps=1)) for model in (executable, timed))
    for one, other in zip(plain, watched, strict=True):
        assert torch.equal(one.latents, other.latents) and torch.equal(one.frames, other.frames)
    assert stages["denoise"].outputs == executable.stage("denoise").outputs
    assert stages["denoise"].spread().runs == 2


def test_the_same_seed_gives_the_same_embeddings(executable: Executable) -> None:
    facts = executable.facts
    first, again, other = (random_script(executable, 3, seed)[0].embeds for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (1, facts.text_len, facts.text_dim) and first.dtype == facts.torch_dtype
