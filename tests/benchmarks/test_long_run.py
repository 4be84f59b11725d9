"""The long run of the tiny model: twice the same bytes, and what it says of drift."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.long_run import main


def test_a_video_is_the_same_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(tmp_path / "box"), "--tiny", "--minutes", "0.02", "--steps", "1", "--out",
             str(tmp_path)]  # fmt: skip
    assert main(given) == 0
    found = json.loads((tmp_path / "long_run.json").read_text(encoding="utf-8"))
    first, second = found["runs"]
    assert found["same"] and first["digest"] == second["digest"]
    assert first["latents"] == first["chunks"] * 2 and first["time"] is not None
    assert "the same bytes again: True" in capsys.readouterr().out


def test_a_folder_that_is_no_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "error[" in capsys.readouterr().err
