"""Phases in parts: fractions, logs that follow each other, weights that are handed on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from examples.tiny_longlive.progress import Progress, add_arguments, part_seed


def test_parts_share_a_log_and_a_schedule(tmp_path: Path) -> None:
    log = tmp_path / "phase.jsonl"
    fractions = []
    for part in ((1, 2), (2, 2)):
        progress = Progress(log, seconds=0, steps=2, part=part)
        going = True
        while going:
            fractions.append(progress.fraction)
            going = progress.advance(1, loss=torch.tensor(0.123456789))
    assert fractions == [0.0, 0.25, 0.5, 0.75] and progress.fraction == 1.0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["part"], line["step"]) for line in lines] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert lines[0]["loss"] == 0.12346


def test_a_save_is_due_now_and_then(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "x.jsonl", seconds=1, steps=None)
    assert not progress.save_is_due()
    progress.began -= 130
    assert not progress.save_is_due(), "the clock is read once a step"
    progress.advance(1)
    assert progress.save_is_due() and not progress.save_is_due()


def test_parts_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, seconds=5)
    first, second = (parser.parse_args(["--out", "x", "--part", p]) for p in ("1/3", "2/3"))
    assert second.part == (2, 3) and part_seed(first) != part_seed(second)
    for wrong in ("2", "0/3", "4/3", "a/b"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--out", "x", "--part", wrong])
    assert "is not like 2/3" in capsys.readouterr().err
