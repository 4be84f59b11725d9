"""One trial of `llvq passes bisect`, and how its end is told. The search: tests/test_bisect.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llvq.bisect import Culprit
from llvq.checkpoints.bundle import Bundle
from llvq.checkpoints.model import VideoModel
from llvq.cli.bisect_trials import Trials, show_culprit
from llvq.compiler import Compiled
from llvq.errors import RecipeError
from llvq.models.config import ModelConfig
from llvq.passes import Rewrite
from llvq.recipe import NVFP4
from llvq.sources import DictSource

PYTHON = (sys.executable, "-c")


@pytest.fixture
def trials(
    tiny_config: ModelConfig, make_weights: Callable[[ModelConfig], DictSource]
) -> Callable[..., Trials]:
    bundle = Bundle(Path("model.pt"), None, None, None)
    model = VideoModel(tiny_config, make_weights(tiny_config), {}, bundle, ())

    def make(*command: str) -> Trials:
        return Trials(model, NVFP4, (), list(command))

    return make


def test_a_command_that_names_no_result_is_refused(trials: Callable[..., Trials]) -> None:
    with pytest.raises(RecipeError, match="names neither") as caught:
        trials("python", "check.py")
    assert caught.value.where == "python check.py"
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(("code", "good"), [(0, True), (1, False), (77, False)])
def test_the_exit_code_is_the_verdict(
    trials: Callable[..., Trials],
    compiled_nvfp4: Compiled,
    code: int,
    good: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    look = "import os, sys; print(sorted(os.listdir(sys.argv[1]))); sys.exit(int(sys.argv[2]))"
    trial = trials(*PYTHON, look, "{program}", str(code))
    assert trial.is_good(compiled_nvfp4) is good
    told = capsys.readouterr()
    assert told.out == "" and "'manifest.json'" in told.err and "'weights'" in told.err


def test_a_box_is_made_where_the_command_names_one(
    trials: Callable[..., Trials], compiled_nvfp4: Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    look = "import sys; from llvq import load; print(*load(sys.argv[1].split('=')[1]).stages)"
    assert trials(*PYTHON, look, "--box={box}").is_good(compiled_nvfp4)
    assert set(capsys.readouterr().err.split()) == set(compiled_nvfp4.stages)


def test_what_a_trial_wrote_is_gone_after_it(
    trials: Callable[..., Trials], compiled_nvfp4: Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trials(*PYTHON, "import sys; print(sys.argv[1])", "{program}").is_good(compiled_nvfp4)
    path = Path(capsys.readouterr().err.replace("\n", ""))
    assert path.name == "trial.nvfp4" and not path.parent.exists()


def test_a_program_that_is_not_there(
    trials: Callable[..., Trials], compiled_nvfp4: Compiled
) -> None:
    with pytest.raises(RecipeError, match="no-such-program cannot be run") as caught:
        trials("no-such-program", "{program}").is_good(compiled_nvfp4)
    assert "No such file" in str(caught.value)


def test_every_trial_is_told(
    trials: Callable[..., Trials], capsys: pytest.CaptureFixture[str]
) -> None:
    trials("{program}").told(12, "good")
    assert capsys.readouterr().err == "    12 rewrites: good\n"


CULPRIT = Culprit(5, 40, Rewrite("fuse-linear", "qkv", "linear_3", "blocks.0", ""), buildable=True)


def test_a_culprit_says_where_to_look_next(capsys: pytest.CaptureFixture[str]) -> None:
    show_culprit(CULPRIT, as_json=False)
    shown = capsys.readouterr()
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines == [
        "first bad rewrite 5 of 40", "pass fuse-linear", "rule qkv", "node linear_3",
        "module blocks.0",
    ]  # fmt: skip
    assert (
        shown.err == "next: --limit 4 --print-ir-after fuse-linear, then --limit 5, and compare\n"
    )


def test_a_culprit_that_stands_with_others_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show_culprit(replace(CULPRIT, buildable=False), as_json=False)
    assert "one of those before it" in capsys.readouterr().err


def test_a_culprit_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show_culprit(CULPRIT, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["number"], document["total"], document["buildable"]) == (5, 40, True)
    assert document["rewrite"]["rule"] == "qkv"
