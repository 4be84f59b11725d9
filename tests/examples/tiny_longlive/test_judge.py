"""The command on a video that our own writer made, through H.264."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import caption
from examples.tiny_longlive.judge import arguments, main, shots_of
from llvq.errors import SessionError
from llvq.runtime.video import VideoWriter

Draw = Callable[..., tuple[Tensor, Tensor]]
FIRST, SECOND = data.sample_scenes(2, 21)
PROMPTS = ["--prompt", caption(FIRST), "--prompt", caption(SECOND)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, draw: Draw) -> Path:
    """Two shots of a chunk each, as `llvq run` makes them: 13 and 16 frames."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    clips = [
        draw(FIRST, [i / 24 for i in range(13)])[0],
        draw(SECOND, [i / 24 for i in range(16)])[0],
    ]
    with VideoWriter(path, fps=24, height=256, width=256) as writer:
        writer.append(torch.cat(clips))
    return path


def test_what_was_asked_for_is_there(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(video), *PROMPTS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"] == 1.0 and found["others"] == {} and len(found["seconds"]) == 2
    names = [f"{t.size} {t.colour} {t.shape}" for s in (FIRST, SECOND) for t in s.things]
    assert [thing["name"] for thing in found["objects"]] == names


def test_the_table_says_what_is_missing(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = data.sample_scenes(1, 9)[0]
    assert {t.colour for t in wrong.things}.isdisjoint(t.colour for t in FIRST.things)
    assert main([str(video), "--prompt", caption(wrong), "--prompt", caption(SECOND),
                 "--cut", f"{13 / 24}"]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert text.count("nobody asked for") == len({t.colour for t in FIRST.things})
    assert "score by second, %: 0 100" in text and "per minute: score unknown" in text


def test_prompts_are_spread_as_llvq_run_spreads_them() -> None:
    texts = [caption(FIRST), caption(SECOND)]
    assert [s.start for s in shots_of(texts, None, 13 + 16 * 4, 24.0)] == [0, 13 + 16 * 2]
    assert [s.start for s in shots_of(texts, [2.5], 100, 24.0)] == [0, 60]
    assert shots_of(texts[:1], None, 5, 24.0)[0].scene.ground == FIRST.ground


@pytest.mark.parametrize(
    ("cuts", "told"), [([9.0], "not cuts of this video"), ([1.0, 2.0], "do not fit together")]
)
def test_cuts_that_do_not_fit_are_refused(cuts: list[float], told: str) -> None:
    with pytest.raises(SessionError, match=told):
        shots_of([caption(FIRST), caption(SECOND)], cuts, 100, 24.0)


def test_errors_are_four_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video", encoding="utf-8")
    for path in (text, tmp_path / "nowhere.mp4"):
        assert main([str(path), "--prompt", caption(FIRST)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 4 and "cannot read the video" in lines[0] and str(path) in lines[1]


def test_a_prompt_outside_the_grammar_is_refused(
    video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(video), "--prompt", "a red kite"]) == 2
    told = capsys.readouterr().err
    assert "'a red kite'" in told and "write it like" in told


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        arguments(["--help"])
    text = capsys.readouterr().out
    assert "--cut 31.5" in text and "Drift: how the score changes per minute" in text
