"""Programs on disk as ONNX, what llvq's runtime gives for them, and others' ways to run a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node, symbolic_trace
from torch.utils._pytree import tree_map_only

from llvq.artifact import Box
from llvq.backends.onnx import external_data, proto
from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.export import check, export
from llvq.backends.onnx.translate import OnnxGraph, translate
from llvq.box import write_program
from llvq.compiler import compile_model
from llvq.models.config import ModelConfig
from llvq.recipe import NVFP4, Recipe
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable, open_checked
from llvq.sources import DictSource

Values = dict[str, Tensor]
Array = NDArray[Any]
Make = Callable[[ModelConfig, Recipe], "Program"]
FP32 = replace(NVFP4, dtype="float32")
MAX = replace(FP32, linear=replace(NVFP4.linear, activation_rule="max"))


class TRT_FP4DynamicQuantize(OpRun):
    """What ModelOpt documents of TensorRT's operator, on the number formats of ml_dtypes."""

    op_domain = "trt"

    def _run(self, x: Array, scale: Array, axis: int, block_size: int, scale_type: int) -> Any:
        assert (axis, block_size, scale_type) == (-1, 16, 17) and scale.shape == ()
        blocks = x.reshape(*x.shape[:-1], -1, block_size)
        amax = np.abs(blocks).max(-1, keepdims=True)
        scales = np.minimum(amax / 6 / scale, 448).astype(ml_dtypes.float8_e4m3fn)
        step = scales.astype(np.float32) * scale
        levels = np.where(step > 0, blocks / np.where(step > 0, step, 1), 0)
        codes = levels.astype(ml_dtypes.float4_e2m1fn).reshape(x.shape)
        return codes, scales[..., 0]


def as_array(tensor: Tensor, dtype: torch.dtype) -> Array:
    """A tensor as numpy has it, in the dtype that the model declares; FP8 as its bytes."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy()
    if dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.to(dtype).numpy()


def run_reference(model: Any, feed: Mapping[str, Array]) -> list[Array]:
    evaluator: Any = ReferenceEvaluator(model, new_ops=[TRT_FP4DynamicQuantize])
    return list(evaluator.run(None, dict(feed)))


def run_onnxruntime(model: str | bytes, feed: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def error(found: Array, wanted: Tensor) -> float:
    """Relative L2."""
    a, b = torch.from_numpy(found.astype(np.float64)), wanted.double()
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


@dataclass(frozen=True)
class Program:
    """A program, its runtime, and one call of every stage: values by name, before `denoise`."""

    box: Box
    runtime: Executable
    values: Mapping[str, Tensor]

    def wanted(self, stage: str, **changed: Tensor) -> Values:
        return self.runtime.stage(stage)({**self.values, **changed})

    def export(self, dialect: str, folder: Path) -> Path:
        export(self.box, DIALECTS[dialect], folder)
        return folder

    def run(self, folder: Path, stage: str, **changed: Tensor) -> dict[str, Array]:
        """A model of an exported folder: portable ones in onnxruntime, others in onnx.reference."""
        path = str(folder / f"{stage}.onnx")
        model = proto.onnx_package().load(path, load_external_data=False)
        portable = {p.key: p.value for p in model.metadata_props}["llvq.dialect"] == "portable"
        dtypes = {1: torch.float32, 2: torch.uint8, 7: torch.int64, 11: torch.float64,
                  16: torch.bfloat16}  # fmt: skip
        values = {**self.values, **changed}
        feed = {i.name: as_array(values[i.name], dtypes[i.type.tensor_type.elem_type])
                for i in model.graph.input}  # fmt: skip
        results = run_onnxruntime(path, feed) if portable else run_reference(path, feed)
        return {o.name: r for o, r in zip(model.graph.output, results, strict=True)}


def rolled(runtime: Executable) -> Values:
    """Random inputs, through every stage once; three pages are written by llvq itself."""
    random = torch.Generator().manual_seed(5)
    values: Values = {}
    for name in ("condition", "modulate", "refresh", "denoise", "decode_first", "decode"):
        if name not in runtime.stages:
            continue
        for spec in runtime.stage(name).inputs:
            if spec.name not in values:
                values[spec.name] = random_input(spec, random)
        if name == "refresh":
            for slot in range(3):
                values["slot"] = torch.tensor(slot)
                values["latent"] = torch.randn(values["latent"].shape, generator=random).to(
                    values["latent"].dtype
                )
                runtime.stage(name)(values)
        else:
            values |= runtime.stage(name)(values)
    return values | {"page_table": torch.tensor([2, 0])}


def random_input(spec: InputSpec, random: torch.Generator) -> Tensor:
    if spec.name == "page_table":
        return torch.zeros(0, dtype=torch.int64)
    if spec.name.startswith("pages."):
        return torch.zeros(spec.sizes).to(spec.dtype)
    if not spec.dtype.is_floating_point:
        return torch.arange(torch.Size(spec.sizes).numel()).reshape(spec.sizes).to(spec.dtype)
    return torch.randn(spec.sizes, generator=random).to(spec.dtype)


@pytest.fixture(scope="session")
def make_program(
    tmp_path_factory: pytest.TempPathFactory,
    make_weights: Callable[[ModelConfig], DictSource],
) -> Make:
    """Compile, write, and open again. Text is left out."""

    def make(config: ModelConfig, recipe: Recipe) -> Program:
        config = replace(config, text=None)
        path = tmp_path_factory.mktemp("programs") / "m.nvfp4"
        weights = make_weights(config)
        rounded = {n: weights.read(n).bfloat16().float() for n in weights.names()}
        write_program(compile_model(config, recipe), DictSource(rounded), path)
        box = open_checked(path, kinds=("program",))
        runtime = executable(box, "cpu")
        return Program(box, runtime, rolled(runtime))

    return make


@pytest.fixture(scope="session")
def in_fp32(make_program: Make, whole_config: ModelConfig) -> Program:
    """The default recipe in fp32: the same codes, and nothing else rounded."""
    return make_program(whole_config, FP32)


@pytest.fixture(scope="session")
def in_bf16(make_program: Make, whole_config: ModelConfig) -> Program:
    return make_program(whole_config, NVFP4)


@pytest.fixture(scope="session")
def of_max(make_program: Make, tiny_config: ModelConfig) -> Program:
    """The denoiser alone, its activations by the max rule."""
    return make_program(tiny_config, MAX)


WINDOWS = ([], [1], [2, 0, 1])


def worst(program: Program, folder: Path, stage: str, **changed: torch.Tensor) -> float:
    """The largest relative L2 distance among the outputs of a stage."""
    wanted = program.wanted(stage, **changed)
    found = program.run(folder, stage, **changed)
    assert set(found) == set(wanted)
    return max(error(found[name], tensor) for name, tensor in wanted.items())


def check_all(program: Program, folder: Path, limit: float) -> None:
    for stage in ("condition", "modulate", "decode_first", "decode"):
        if stage in program.runtime.stages:
            assert worst(program, folder, stage) < limit, stage
    for window in WINDOWS:
        table = torch.tensor(window, dtype=torch.int64)
        assert worst(program, folder, "denoise", page_table=table) < limit, window


class Recorder(Interpreter):
    """Notes the value of every node, as graphs of a program have it."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = tree_map_only(Tensor, lambda x: x.to("meta"), result)
        return result


def traced(function: Callable[..., Any], *tensors: Tensor) -> tuple[GraphModule, list[InputSpec]]:
    """A stage of one function; tensors that it closes over are its weights.

    What it calls `pages_x` is the page tensor `pages.x`.
    """
    gm = function if isinstance(function, GraphModule) else symbolic_trace(function)
    Recorder(gm).run(*tensors)
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    if isinstance(output.args[0], Node):
        output.args = ((output.args[0],),)
    places = [node for node in gm.graph.nodes if node.op == "placeholder"]
    names = [node.name.replace("pages_", "pages.") for node in places]
    specs = [
        InputSpec(name, x.dtype, tuple(x.shape), "call")
        for name, x in zip(names, tensors, strict=True)
    ]
    return gm, specs


def translated(dialect: str, function: Callable[..., Any], *tensors: Tensor) -> OnnxGraph:
    gm, specs = traced(function, *tensors)
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    names = [f"out.{index}" for index in range(len(output.args[0]))]
    return translate("test", gm, specs, names, DIALECTS[dialect])


def run_as(
    dialect: str, folder: Path, function: Callable[..., Any], *tensors: Tensor
) -> list[Array]:
    """A function through its model on disk: onnxruntime for portable, onnx.reference for others."""
    gm, specs = traced(function, *tensors)
    graph = translated(dialect, function, *tensors)
    source = DictSource(dict(gm.named_buffers()))
    offsets = external_data.layout(external_data.weights_read(graph.initializers), source)
    external_data.write(folder / external_data.FILE, offsets, source)
    file = folder / f"{dialect}.onnx"
    model = proto.model(graph, DIALECTS[dialect], offsets, {})
    file.write_bytes(model.SerializeToString())
    check(file)
    given = {spec.name: x for spec, x in zip(specs, tensors, strict=True)}
    feed = {value.name: as_array(given[value.name], value.dtype) for value in graph.inputs}
    return (run_onnxruntime if dialect == "portable" else run_reference)(str(file), feed)
