"""The roofline as text: nothing is printed without its label, and no time is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llvq.cli.roofline_table import print_roofline
from llvq.compiler import Compiled
from llvq.roofline import ASSUMPTIONS, LABEL, Roofline, roofline


@pytest.fixture
def made(compiled_whole: Compiled) -> Roofline:
    stages, facts, recipe = compiled_whole.stages, compiled_whole.facts, compiled_whole.recipe
    found = roofline(stages, facts, recipe, "sm_120a", "w4a4")
    assert found is not None
    return found


def test_every_product_has_a_table_under_the_label(
    made: Roofline, capsys: pytest.CaptureFixture[str]
) -> None:
    print_roofline(made)
    text = capsys.readouterr().out
    assert all(assumption in text for assumption in ASSUMPTIONS)
    rows = [line.split()[:2] for line in text.splitlines()]
    assert ["llvq.nvfp4_linear_swizzled", "fp4"] in rows
    for name in ("RTX PRO 6000 Blackwell", "GeForce RTX 5090"):
        assert f"{name}, {LABEL}" in text
    assert "fp4 2015.2 TFLOP/s, 1.792 TB/s   (NVIDIA" in text
    assert text.count(f"FPS ({LABEL})") == 2


def test_shares_add_up_though_small_rows_are_one(
    made: Roofline, capsys: pytest.CaptureFixture[str]
) -> None:
    print_roofline(replace(made, estimates=made.estimates[:1]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("%")]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=1.5)
    assert any(" more " in line for line in lines) and len(lines) < len(made.estimates[0].ops)


def test_without_a_vae_the_speed_says_what_is_missing(
    compiled_nvfp4: Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, facts, recipe = compiled_nvfp4.stages, compiled_nvfp4.facts, compiled_nvfp4.recipe
    found = roofline(stages, facts, recipe, "sm_90a", "w4a8")
    assert found is not None
    print_roofline(found)
    assert "FPS, decoding left out" in capsys.readouterr().out
