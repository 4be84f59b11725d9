"""Programs on disk as ONNX, what llvq's runtime gives for them, and others' ways to run a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from torch.fx import Graph, GraphModule

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
) -> Callable[[ModelConfig, Recipe], Program]:
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
def in_fp32(
    make_program: Callable[[ModelConfig, Recipe], Program], whole_config: ModelConfig
) -> Program:
    """The default recipe in fp32: the same codes, and nothing else rounded."""
    return make_program(whole_config, FP32)


@pytest.fixture(scope="session")
def in_bf16(
    make_program: Callable[[ModelConfig, Recipe], Program], whole_config: ModelConfig
) -> Program:
    return make_program(whole_config, NVFP4)


def one_call(target: Any, *args: Any, **kwargs: Any) -> tuple[GraphModule, list[InputSpec]]:
    """A stage of one operator, whose tensors are inputs `x0`, `x1`, ..."""
    graph, specs = Graph(), []

    def placed(value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, Tensor) for item in value):
            return [placed(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        spec = InputSpec(f"x{len(specs)}", value.dtype, tuple(value.shape), "call")
        specs.append(spec)
        node = graph.placeholder(spec.name)
        node.meta["val"] = value.to("meta")
        return node

    places = [placed(value) for value in args]
    node = graph.call_function(target, tuple(places), kwargs)
    node.meta["val"] = result = target(*args, **kwargs)
    parts = [node]
    if isinstance(result, list | tuple):
        parts = []
        for index, part in enumerate(result):
            parts.append(graph.call_function(__import__("operator").getitem, (node, index)))
            parts[-1].meta["val"] = part
    graph.output(tuple(parts))
    return GraphModule({}, graph), specs


def translated(target: Any, *args: Any, dialect: str, **kwargs: Any) -> OnnxGraph:
    gm, specs = one_call(target, *args, **kwargs)
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    names = [f"y{index}" for index in range(len(output.args[0]))]
    return translate("test", gm, specs, names, DIALECTS[dialect])


def both(
    tmp_path: Path, target: Any, *args: Any, portable: bool = True, **kwargs: Any
) -> list[list[Array]]:
    """Results of one operator by onnx.reference (standard) and by onnxruntime (portable)."""
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    found = []
    for dialect in ("standard", "portable")[: 1 + portable]:
        graph = translated(target, *args, dialect=dialect, **kwargs)
        model = proto.model(graph, DIALECTS[dialect], {}, {})
        file = tmp_path / f"{dialect}.onnx"
        file.write_bytes(model.SerializeToString())
        check(file)
        kept = {value.name: value.dtype for value in graph.inputs}
        feed = {
            name: as_array(tensor, kept[name])
            for name, tensor in zip((f"x{i}" for i in range(len(tensors))), tensors, strict=True)
            if name in kept
        }
        run = run_reference if dialect == "standard" else run_onnxruntime
        found.append(run(str(file), feed))
    return found


def tensors_of(result: Any) -> Sequence[Tensor]:
    return list(result) if isinstance(result, list | tuple) else [result]


def data_file(folder: Path) -> Path:
    return folder / external_data.FILE
