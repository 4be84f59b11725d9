"""Which prompts a study has, and when it can say whether videos show them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.kv_study import arguments
from benchmarks.study_prompts import (
    CALIBRATION_PROMPTS,
    judge_of,
    shots_of,
    write_calibration_prompts,
)
from examples.tiny_longlive.captions import parse
from examples.tiny_longlive.identity import by_chunk


def test_prompts_are_those_of_the_model() -> None:
    options = arguments(["--seeds", "3"])
    captions = shots_of(options, is_tiny=True)
    assert list(captions) == [0, 1, 2]
    for (text,) in captions.values():
        parse(text)
    assert len(set(captions.values())) == 3
    assert len(set(shots_of(options, is_tiny=False).values())) == 2
    both = shots_of(arguments(["--prompt", "a", "--prompt", "b"]), is_tiny=True)
    assert set(both.values()) == {("a", "b")}


def test_identity_is_judged_where_every_prompt_is_a_caption(tmp_path: Path) -> None:
    captions = shots_of(arguments(["--seeds", "2"]), is_tiny=True)
    assert judge_of(captions) is by_chunk
    assert judge_of({**captions, 7: ("a red kite",)}) is None
    write_calibration_prompts(tmp_path)
    held_out = (tmp_path / CALIBRATION_PROMPTS).read_text().splitlines()
    assert len(set(held_out)) == 8
    for text in held_out:
        parse(text)
        assert (text,) not in captions.values()
