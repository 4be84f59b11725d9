"""A program -> a folder with an ONNX model for each stage and one file with the weights of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llvq import graphs
from llvq.artifact import Box
from llvq.backends.onnx import external_data, proto
from llvq.backends.onnx.dialects import Dialect
from llvq.backends.onnx.external_data import Progress
from llvq.backends.onnx.folder import SUFFIX, OnnxFolder
from llvq.backends.onnx.translate import OnnxGraph, translate
from llvq.checkpoints.safetensors_file import SafetensorsSource
from llvq.errors import TargetError
from llvq.runtime.contract import InputSpec

STAGES = ("condition", "modulate", "denoise", "refresh", "decode_first", "decode")
"""Encoders run once per prompt or image and are not exported; their results are inputs."""


@dataclass(frozen=True)
class Exported:
    """What was written: nodes of each model, stages that were not, bytes of external data."""

    nodes: Mapping[str, int]
    left_out: tuple[str, ...]
    data_bytes: int


def export(
    program: Box,
    dialect: Dialect,
    path: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write `STAGE.onnx` for each stage in STAGES that the program has.

    Every model has passed `onnx.checker` with full, strict shape inference. Raises TargetError (a
    stage that the dialect cannot express, onnx not installed), OutputError; then nothing is left.
    """
    proto.onnx_package()
    translated = [translated_stage(program, name, dialect) for name in _stages(program)]
    source = weights_of(program)
    initializers = (entry for graph in translated for entry in graph.initializers)
    offsets = external_data.layout(external_data.weights_read(initializers), source)
    with OnnxFolder(path, overwrite=overwrite) as folder:
        data = folder / external_data.FILE
        external_data.write(data, offsets, source, progress)
        for graph in translated:
            model = proto.model(graph, dialect, offsets, facts(program, graph.name, dialect))
            file = folder / f"{graph.name}{SUFFIX}"
            file.write_bytes(model.SerializeToString())
            check(file)
        size = data.stat().st_size
    left_out = tuple(name for name in program.manifest["stages"] if name not in STAGES)
    return Exported({graph.name: len(graph.calls) for graph in translated}, left_out, size)


def translated_stage(program: Box, name: str, dialect: Dialect) -> OnnxGraph:
    """One stage in records. Raises TargetError naming stage and node."""
    gm = graphs.load(program.graph(name), device="meta")
    specs = [InputSpec.from_dict(entry) for entry in program.manifest["contract"][name]]
    try:
        return translate(name, gm, specs, program.manifest["stages"][name]["outputs"], dialect)
    except TargetError as error:
        where = f"{program.path}   stage {name}   {error.where}"
        raise TargetError(error.what, where=where, because=error.because, fix=error.fix) from error


def weights_of(program: Box) -> SafetensorsSource:
    names = sorted(n for n in program.manifest["files"] if n.startswith("weights/"))
    return SafetensorsSource(program.path, [program.file(name) for name in names])


def facts(program: Box, stage: str, dialect: Dialect) -> dict[str, str]:
    """Metadata of a model: where it comes from, and how it is to be read."""
    return {
        "llvq.program": program.id,
        "llvq.recipe": str(program.manifest["recipe"]["name"]),
        "llvq.stage": stage,
        "llvq.dialect": dialect.name,
    }


def check(file: Path) -> None:
    """The checker of onnx, with strict shape inference. A model that fails it is a bug of llvq."""
    onnx: Any = proto.onnx_package()
    try:
        onnx.checker.check_model(str(file), full_check=True)
        model = onnx.load(str(file), load_external_data=False)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TargetError(
            f"{file.name} is not a valid ONNX model",
            because=str(error).splitlines()[0],
            fix="this is a bug of llvq: report it with the recipe of the program",
        ) from error


def _stages(program: Box) -> list[str]:
    return [name for name in STAGES if name in program.manifest["stages"]]
