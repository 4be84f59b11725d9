"""What each dialect writes for one linear, and in which types."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.elements import ELEMENT_TYPES, FP4
from llvq.backends.onnx.records import Value
from llvq.backends.onnx.translate import OnnxGraph
from llvq.formats import nvfp4
from tests.backends.onnx.conftest import translated
from tests.backends.onnx.test_nvfp4_ops import linear, rand, there_and_back


def ops(graph: OnnxGraph) -> Counter[str]:
    return Counter(call.op for call in graph.calls)


def producer(graph: OnnxGraph, name: str) -> str:
    (call,) = (c for c in graph.calls if name in [value.name for value in c.outputs])
    return call.op


@pytest.mark.parametrize("dialect", ["standard", "trt"])
def test_a_weight_is_fp4_behind_two_dequantize_linear(dialect: str) -> None:
    graph = translated(dialect, linear("max", (16, 32), 48, bias=False), rand(2, 48))
    codes = [i.value for i in graph.initializers if i.value.dtype == FP4]
    assert [value.shape for value in codes] == [(16, 48), (32, 48)]
    for value in codes:
        (outer,) = (call for call in graph.calls if call.inputs[0] == value.name)
        (inner,) = (c for c in graph.calls if c.outputs[0].name == outer.inputs[1])
        assert outer.op == inner.op == "DequantizeLinear"
        assert dict(outer.attributes) == {"axis": -1, "block_size": 16}
        scales, g = (i.value for i in graph.initializers if i.value.name in inner.inputs)
        assert (scales.dtype, g.dtype) == (torch.float8_e4m3fn, torch.float32)
        assert g.shape == ()


def modelopt_model(weight: Tensor) -> Any:
    """A linear as ModelOpt's own exporter of NVFP4 writes it."""
    exporter = pytest.importorskip("modelopt.onnx.export.nvfp4_exporter").NVFP4QuantExporter

    rows, k = weight.shape
    nodes = [
        helper.make_node("TRT_FP4QDQ", ["w"], ["q"], domain="trt", block_size=16),
        helper.make_node("Transpose", ["q"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    shapes = {"x": [2, k], "y": [2, rows], "q": [rows, k]}
    x, y, q = (helper.make_tensor_value_info(n, 1, shape) for n, shape in shapes.items())
    initializer = [numpy_helper.from_array(weight.numpy(), "w")]
    graph = helper.make_graph(nodes, "g", [x], [y], initializer, value_info=[q])
    return exporter.process_model(helper.make_model(graph))


def test_a_weight_is_what_modelopt_writes_node_for_node_and_byte_for_byte() -> None:
    weight = rand(32, 48)
    theirs = modelopt_model(weight)
    ours = translated("trt", linear_of(weight), rand(2, 48))
    types = {i.value.name: (ELEMENT_TYPES[i.value.dtype], i.value.shape) for i in ours.initializers}
    decoded = [c for c in ours.calls if c.op == "DequantizeLinear" and c.inputs[0] in types]
    written = [n for n in theirs.graph.node if n.op_type == "DequantizeLinear"]
    assert [dict(call.attributes) for call in decoded] == [
        {a.name: helper.get_attribute_value(a) for a in node.attribute} for node in written
    ]
    stored = {i.name: i for i in theirs.graph.initializer}
    for name, other in ((decoded[1].inputs[0], "w_f4"), (decoded[0].inputs[0], "w_f8_scale")):
        assert types[name] == (stored[other].data_type, tuple(stored[other].dims))
    packed = nvfp4.quantize(weight)
    assert packed.codes.numpy().tobytes() == stored["w_f4"].raw_data
    assert packed.scales.view(torch.uint8).numpy().tobytes() == stored["w_f8_scale"].raw_data


def linear_of(weight: Tensor) -> Any:
    packed = nvfp4.quantize(weight)
    parts = (packed.codes, packed.scales, packed.global_scale.reshape(1))
    llvq = torch.ops.llvq

    def function(x: Tensor) -> Tensor:
        q = llvq.quantize.default(x, "max")
        rows = [weight.shape[0]]
        return llvq.nvfp4_linear.default(q[0], q[1], q[2], *parts, None, rows, torch.float32)

    return function


def test_no_scale_of_a_dequantize_linear_is_e4m3() -> None:
    for dialect in ("standard", "trt"):
        graph = translated(dialect, linear("max", (16,), 48, bias=True), rand(2, 48))
        known: dict[str, Value] = {i.value.name: i.value for i in graph.initializers}
        known |= {value.name: value for call in graph.calls for value in call.outputs}
        scales = [known[c.inputs[1]] for c in graph.calls if c.op.endswith("tizeLinear")]
        assert scales and {value.dtype for value in scales} == {torch.float32}


def test_trt_quantizes_by_its_own_operator_with_a_constant_second_scale() -> None:
    graph = translated("trt", there_and_back("max"), rand(2, 48))
    (call,) = (call for call in graph.calls if call.op == "TRT_FP4DynamicQuantize")
    assert call.domain == "trt" and "QuantizeLinear" not in ops(graph)
    assert dict(call.attributes) == {"axis": -1, "block_size": 16, "scale_type": 17}
    assert call.inputs[1] in [i.value.name for i in graph.initializers]
    assert [value.dtype for value in call.outputs] == [FP4, torch.float8_e4m3fn]


def test_trt_takes_a_static_scale_as_it_is() -> None:
    graph = translated("trt", there_and_back("max", torch.tensor(0.01)), rand(2, 48))
    assert "Div" not in ops(graph) and "Mul" not in ops(graph)


def test_portable_has_no_fp4_and_computes_in_fp32() -> None:
    halves: list[Tensor] = [rand(2, 48).bfloat16()]
    graph = translated("portable", linear("four_over_six", (16,), 48, bias=True), *halves)
    values = [value for call in graph.calls for value in call.outputs]
    values += [i.value for i in graph.initializers]
    assert not {value.dtype for value in values} & {FP4, torch.bfloat16}
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(graph))


def test_dialects_are_known_by_name() -> None:
    assert list(DIALECTS) == ["standard", "trt", "portable"]
    assert all(name == dialect.name for name, dialect in DIALECTS.items())
