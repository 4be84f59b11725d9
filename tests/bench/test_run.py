"""A whole report of a box, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llvq.bench.run import Report, bench_box, time_video
from llvq.runtime.executable import Executable
from llvq.runtime.load import open_checked

CHUNKS = 2


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def report(honest_box: Path, told: list[tuple[str, int, int]]) -> Report:
    box = open_checked(honest_box, kinds=("box",))
    return bench_box(box, chunks=CHUNKS, steps=2, seed=3, tell=lambda *what: told.append(what))


def test_a_report_has_every_number_and_what_it_was_made_on(report: Report) -> None:
    assert (report.target, report.numerics, report.steps) == ("cpu", "w4a4-emulated", 2)
    assert {row.stage for row in report.stages} == {"denoise", "refresh", "decode"}
    video = report.end_to_end
    assert video.first_frame > 0 and 0 < video.chunk.median <= video.chunk.p99
    # The first chunk lacks three frames; the window has four chunks.
    assert (video.frames, video.chunk.runs) == ((4 + CHUNKS) * 8 - 3, CHUNKS)
    assert video.fps > 0 and report.loading > 0 and report.memory["bytes"] > 0
    assert "torch" in report.versions and report.device.startswith("cpu")
    assert "pages in nvfp4" in report.video and len(report.linears) == 4


def test_a_report_is_json(report: Report) -> None:
    document = json.loads(json.dumps(report.to_dict()))
    assert document["linears"][0]["slower"] == report.linears[0].slower
    assert document["end_to_end"]["chunk"]["runs"] == CHUNKS


def test_progress_ends_where_it_said(report: Report, told: list[tuple[str, int, int]]) -> None:
    total = 4 + CHUNKS
    assert told == [(what, n + 1, total) for what in ("stages", "video") for n in range(total)]


def test_latents_are_timed_where_there_is_no_vae(executable: Executable) -> None:
    """Two latent frames to a chunk."""
    denoiser = {k: v for k, v in executable.stages.items() if not k.startswith("decode")}
    model = Executable(denoiser, executable.facts, executable.device)
    video = time_video(model, chunks=1, steps=1, seed=0, tell=lambda done: None)
    assert video.frames == 5 * 2
