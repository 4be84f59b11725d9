"""`llvq quantize --budget`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llvq.cli.budget import recipe_beside
from llvq.recipe import load_recipe
from tests.cli.conftest import SIZE

Invoke = Callable[..., Result]


def test_a_program_within_a_budget_and_the_recipe_that_says_why(
    invoke: Invoke, checkpoint: Path, tmp_path: Path
) -> None:
    out, prompts = tmp_path / "small.nvfp4", tmp_path / "prompts.txt"
    prompts.write_text("a red kite\n", encoding="utf-8")
    words = ("--budget", "5.5bits", "--calibrate-prompts", prompts, "--calibrate-chunks", "1")
    result = invoke("quantize", checkpoint, *SIZE, "-o", out, *words)
    assert result.exit_code == 0, result.stderr
    recipe = load_recipe(str(recipe_beside(out)))
    manifest = json.loads((out / "manifest.json").read_text())
    kept = recipe.linear.because
    assert kept and manifest["recipe"]["linear"]["because"] == kept
    packed = {s for r in manifest["weights"].values() if r["op"] == "quantize"
              for s in r["sources"]}  # fmt: skip
    assert not {f"{layer}.weight" for layer in kept} & packed
    taken = invoke("quantize", checkpoint, *SIZE, "-o", out, *words)
    assert taken.exit_code == 5 and "--force" in taken.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "3bits"), "no budget '3bits'"),
        (("--budget", "4.7", "--calibrate", "modelopt:max"), "first --budget alone"),
        (("--budget", "4.7", "--calibration", "f"), "first --budget alone"),
    ],
)
def test_what_is_no_budget_is_refused_before_anything_is_opened(
    invoke: Invoke, words: tuple[str, ...], said: str
) -> None:
    result = invoke("quantize", "nothing.pt", *words)
    assert result.exit_code == 2 and said in result.stderr
