"""What is said beside a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from llvq.artifact import Box
from llvq.weight_export.formats import TOOLS
from llvq.weight_export.notes import notes
from llvq.weight_export.program import ProgramSource
from llvq.weight_export.stored import StoredSource
from tests.weight_export.conftest import Made


def said(program: Box, format: str) -> tuple[str, ...]:
    source, tool = ProgramSource(program), TOOLS[format]
    stored = StoredSource(source, tool.layout, full=tool.full)
    return tuple(notes(program, source, stored, tool))


def test_nothing_is_said_where_the_tool_does_the_same(program: Box) -> None:
    assert said(program, "comfyui") == said(program, "longlive-4o6") == ()


def test_activations_are_spoken_of(program: Box, smoothed: Made) -> None:
    assert "activations stay in BF16 there" in said(program, "modelopt")[0]
    left_out = "static input scales are left out: the tool scales activations at each call"
    assert said(smoothed.program, "longlive-4o6")[0] == left_out


@pytest.mark.parametrize("smoothed", ["svd"], indirect=True)
def test_a_loader_must_know_factors_and_branches(smoothed: Made, tmp_path: Path) -> None:
    text = " ".join(said(smoothed.program, "modelopt"))
    assert "18 linears multiply their input by a pre_quant_scale" in text
    assert "20 linears add a low-rank branch" in text
    assert "2 norms are written with the smoothing factor" in text
