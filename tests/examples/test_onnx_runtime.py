"""The example: a whole rollout in onnxruntime, pages and all, against llvq's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from examples.onnx_runtime import compare
from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.export import export
from llvq.box import write_program
from llvq.checks import LIMIT
from llvq.compiler import compile_model
from llvq.models.config import ModelConfig
from llvq.recipe import NVFP4
from llvq.runtime.load import open_checked
from llvq.sources import DictSource


def test_a_rollout_stays_together(
    tiny_config: ModelConfig, make_weights: Callable[[ModelConfig], DictSource], tmp_path: Path
) -> None:
    program = tmp_path / "m.nvfp4"
    compiled = compile_model(tiny_config, replace(NVFP4, dtype="float32"))
    write_program(compiled, make_weights(tiny_config), program)
    opened = open_checked(program, kinds=("program",))
    export(opened, DIALECTS["portable"], tmp_path / "m-onnx")
    first, *later = compare(program, tmp_path / "m-onnx")
    assert first < 1e-4 and len(later) == 2 and max(later) < LIMIT
