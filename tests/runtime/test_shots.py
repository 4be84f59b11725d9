"""Which chunk is prompted with what, and how many chunks a length takes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llvq.errors import SessionError
from llvq.runtime.executable import Executable
from llvq.runtime.session import Prompt, Session
from llvq.runtime.shots import Cue, chunks_for, cues, spellings

CUT = "The scene transitions. "


@pytest.mark.parametrize(
    ("shots", "chunks", "lengths"),
    [
        (1, 1, [1]),
        (1, 7, [7]),
        (2, 6, [3, 3]),
        (3, 8, [3, 3, 2]),
        (3, 4, [2, 1, 1]),
        (4, 4, [1] * 4),
    ],
)
def test_shots_are_even_and_earlier_ones_take_the_rest(
    shots: int, chunks: int, lengths: list[int]
) -> None:
    names = [f"shot {number}" for number in range(shots)]
    plain = [cue.prompt.removeprefix(CUT) for cue in cues(names, chunks, CUT)]
    assert plain == [
        name for name, length in zip(names, lengths, strict=True) for _ in range(length)
    ]


def test_the_first_chunk_of_every_later_shot_is_a_cut() -> None:
    assert cues(["a", "b"], 5, CUT) == [
        Cue("a", False), Cue("a", False), Cue("a", False), Cue(CUT + "b", True), Cue("b", False),
    ]  # fmt: skip


def test_a_prompt_that_brings_the_prefix_gets_no_second_one() -> None:
    written = cues([CUT + "a", CUT + "b"], 4, CUT)
    # What the first shot is prompted with is the user's own: nothing was before it.
    assert [cue.prompt for cue in written] == [CUT + "a", CUT + "a", CUT + "b", "b"]
    assert [cue.scene_cut for cue in written] == [False, False, True, False]


def test_a_model_without_a_prefix_still_cuts() -> None:
    assert cues(["a", "b"], 2, "") == [Cue("a", False), Cue("b", True)]


@given(st.lists(st.sampled_from(["a", CUT + "a", CUT + CUT + "b", "b", CUT]), min_size=1))
def test_no_video_prompts_with_another_spelling(prompts: list[str]) -> None:
    known = {text for prompt in prompts for text in spellings(prompt, CUT)}
    for chunks in (len(prompts), 3 * len(prompts)):
        assert {cue.prompt for cue in cues(prompts, chunks, CUT)} <= known
    assert spellings("a", "") == ("a",)


@pytest.mark.parametrize(
    ("prompts", "what", "fix"),
    [([], "no prompt was given", "--prompt"), (["a"] * 3, "3 prompts do not fit", "--seconds")],
)
def test_prompts_that_make_no_script(prompts: list[str], what: str, fix: str) -> None:
    with pytest.raises(SessionError, match=what) as caught:
        cues(prompts, 2, CUT)
    assert fix in str(caught.value)


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 8])
@pytest.mark.parametrize("fps", [15, 24, 25])
def test_the_chunks_hold_every_frame_and_none_is_idle(frames_per_chunk: int, fps: int) -> None:
    """n chunks decode to 4 * frames_per_chunk * n - 3 frames: the first latent gives one."""
    for frames in range(1, 400):
        count = chunks_for(frames / fps, fps, frames_per_chunk, 4)
        held = [4 * frames_per_chunk * n - 3 for n in (count - 1, count)]
        assert held[0] < frames <= held[1] or count == 1


def test_a_session_of_so_many_chunks_has_those_frames(executable: Executable) -> None:
    facts = executable.facts
    count = chunks_for(6 / facts.fps, facts.fps, facts.frames_per_chunk, facts.temporal_stride)
    embeds = torch.ones(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype)
    decoded = [chunk.frames for chunk in Session(executable, [Prompt(embeds)] * count, steps=1)]
    lengths = [frames.shape[0] for frames in decoded if frames is not None]
    assert sum(lengths) >= 6 > sum(lengths[:-1])


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_length(seconds: float) -> None:
    with pytest.raises(SessionError, match="seconds is not a length"):
        chunks_for(seconds, 24, 8, 4)


@pytest.mark.parametrize("seconds", [86_401.0, 1e9, 1e300])
def test_a_script_of_more_than_a_day_is_not_written(seconds: float) -> None:
    with pytest.raises(SessionError, match="longer than a day"):
        chunks_for(seconds, 24, 8, 4)


def test_less_than_a_frame_is_one_chunk() -> None:
    assert chunks_for(1e-6, 24, 8, 4) == 1
