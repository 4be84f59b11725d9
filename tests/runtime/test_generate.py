"""Prompts to scripts, before a weight is loaded. Whole videos: tests/cli/test_run.py."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llvq.checkpoints.random import tiny_config, write_random_checkpoint
from llvq.compiler import Compiled
from llvq.errors import SessionError
from llvq.runtime.executable import RunFacts
from llvq.runtime.generate import write_script


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing of a box but its tokenizer, which has a token per byte."""
    folder = tmp_path_factory.mktemp("box")
    config = replace(tiny_config(), vae=None, dit=replace(tiny_config().dit, num_layers=1))
    write_random_checkpoint(folder / "in", config, seed=0)
    (folder / "tokenizer").mkdir()
    found = folder / "in" / "google" / "umt5-xxl" / "tokenizer.json"
    shutil.copy(found, folder / "tokenizer")
    return folder


@pytest.fixture
def facts(compiled_nvfp4: Compiled) -> RunFacts:
    return replace(compiled_nvfp4.facts, text_len=32)


def test_shots_share_the_chunks(facts: RunFacts, box: Path) -> None:
    script = write_script(facts, box, ["a kite", "a boat"], 4)
    assert [cue.scene_cut for cue in script.cues] == [False, False, True, False]
    cut = facts.scene_cut_prefix + "a boat"
    assert set(script.tokens) == {"a kite", cut, "a boat"}
    assert script.truncated == ()


def test_a_prompt_that_is_cut_off_is_told(facts: RunFacts, box: Path) -> None:
    assert write_script(facts, box, ["a kite " * 9], 1).truncated == ("a kite " * 9,)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [([], "no prompt"), ([" "], "is empty"), (["a", "b", "c"], "do not fit")],
)
def test_prompts_that_make_no_video(
    facts: RunFacts, box: Path, prompts: list[str], said: str
) -> None:
    with pytest.raises(SessionError, match=said):
        write_script(facts, box, prompts, 2)


def test_a_box_without_a_tokenizer_says_what_to_do(facts: RunFacts, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no tokenizer") as refused:
        write_script(facts, tmp_path, ["a kite"], 1)
    assert "--embeds" in str(refused.value)
