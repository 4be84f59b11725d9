"""What a file cannot hold is refused, by name and count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llvq.artifact import Box
from llvq.errors import RecipeError
from llvq.weight_export.export import export_weights
from llvq.weight_export.formats import TOOLS
from llvq.weight_export.program import ProgramSource
from llvq.weight_export.refusals import check_carried
from tests.weight_export.conftest import Made

WITHOUT = ("compressed-tensors", "lightx2v", "longlive-4o6")


def quiet(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("smoothed", ["awq"], indirect=True)
def test_formats_without_factors_refuse_them(smoothed: Made) -> None:
    source = ProgramSource(smoothed.program)
    for format in WITHOUT:
        with pytest.raises(RecipeError, match="the smoothing factors of 18 linears") as caught:
            check_carried(smoothed.program, source, format)
        assert "(blocks.0." in str(caught.value)
        assert "--format modelopt or comfyui" in str(caught.value.fix)
    for format in set(TOOLS) - set(WITHOUT):
        check_carried(smoothed.program, source, format)


@pytest.mark.parametrize("smoothed", ["svd"], indirect=True)
def test_formats_without_branches_refuse_them(smoothed: Made, tmp_path: Path) -> None:
    source = ProgramSource(smoothed.program)
    for format in (*WITHOUT, "comfyui"):
        with pytest.raises(RecipeError, match="the low-rank branches of 20 linears") as caught:
            check_carried(smoothed.program, source, format)
        assert ("smoothing factors of 18" in str(caught.value)) == (format != "comfyui")
        assert str(caught.value.fix).startswith("--format modelopt,")
    with pytest.raises(RecipeError, match="--format comfyui cannot hold"):
        export_weights(smoothed.program, "comfyui", tmp_path / "m.safetensors", progress=quiet)
    assert not os.listdir(tmp_path)


def test_static_scales_are_needed_by_lightx2v(program: Box) -> None:
    with pytest.raises(RecipeError, match="needs static input scales"):
        check_carried(program, ProgramSource(program), "lightx2v")


def test_a_program_without_nvfp4_is_refused(program: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ProgramSource(program)
    monkeypatch.setattr(ProgramSource, "packed", lambda self, name: None)
    with pytest.raises(RecipeError, match="no weight in NVFP4"):
        check_carried(program, source, "modelopt")
