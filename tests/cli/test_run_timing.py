"""What `llvq run` says of its time, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from llvq.cli.run_timing import TIMED, Timing
from llvq.runtime.executable import RunFacts

FACTS = cast(RunFacts, SimpleNamespace(fps=24.0))
TOOK = Timing(setup=2.0004, first=0.5, generate=12.0)


def test_speed_is_frames_by_the_time_that_they_took(capsys: pytest.CaptureFixture[str]) -> None:
    TOOK.show(Path("a.mp4"), 240, FACTS, latents_only=False, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "a.mp4 240 frames, 10.0 s of video" in text
    assert "loading, prompts 2.0 s" in text and "first frames 0.5 s after that" in text
    assert f"12.0 s, 20.00 FPS ({TIMED})" in text


def test_latents_are_counted_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    TOOK.show(Path("a.safetensors"), 24, FACTS, latents_only=True, as_json=False)
    assert "24 latent frames" in capsys.readouterr().out


def test_json_says_what_was_timed(capsys: pytest.CaptureFixture[str]) -> None:
    TOOK.show(Path("a.mp4"), 240, FACTS, latents_only=False, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "path": "a.mp4",
        "frames": 240,
        "latents_only": False,
        "setup_s": 2.0,
        "first_frame_s": 0.5,
        "generate_s": 12.0,
        "fps": 20.0,
        "timed": TIMED,
    }
