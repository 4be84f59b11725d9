"""Records as protobuf: versions, metadata, external data, and what is said without onnx."""

from __future__ import annotations

import sys

import onnx
import pytest
import torch

from llvq.backends.onnx import proto
from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.elements import ELEMENT_TYPES, FP4
from llvq.backends.onnx.external_data import FILE
from llvq.backends.onnx.records import Weight
from llvq.errors import TargetError
from tests.backends.onnx.conftest import translated
from tests.backends.onnx.test_nvfp4_ops import linear, rand


def test_element_types_are_those_of_onnx() -> None:
    names = {
        torch.float32: "FLOAT", torch.uint8: "UINT8", torch.int32: "INT32", torch.int64: "INT64",
        torch.bool: "BOOL", torch.float16: "FLOAT16", torch.float64: "DOUBLE",
        torch.bfloat16: "BFLOAT16", torch.float8_e4m3fn: "FLOAT8E4M3FN", FP4: "FLOAT4E2M1",
    }  # fmt: skip
    assert {onnx.TensorProto.DataType.Value(names[d]): d for d in names} == {
        number: dtype for dtype, number in ELEMENT_TYPES.items()
    }


def test_a_model_says_what_it_is_and_where_its_weights_lie() -> None:
    graph = translated("trt", linear("max", (16, 32), 48, bias=True), rand(2, 48))
    used = [i.source.name for i in graph.initializers if isinstance(i.source, Weight)]
    offsets = {name: 4096 * (1 + index) for index, name in enumerate(dict.fromkeys(used))}
    model = proto.model(graph, DIALECTS["trt"], offsets, {"llvq.stage": "test"})
    assert model.ir_version == 11
    assert {o.domain: o.version for o in model.opset_import} == {"": 23, "trt": 1}
    assert {p.key: p.value for p in model.metadata_props} == {"llvq.stage": "test"}
    placed = [t for t in model.graph.initializer if t.external_data]
    codes = [t for t in placed if t.data_type == onnx.TensorProto.FLOAT4E2M1]
    first, second = ({e.key: e.value for e in t.external_data} for t in codes)
    assert first["location"] == FILE
    assert int(second["offset"]) - int(first["offset"]) == int(first["length"]) == 16 * 48 // 2
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(TargetError) as caught:
        proto.onnx_package()
    assert caught.value.fix == "pip install 'llvq[onnx]'"


def test_an_onnx_without_fp4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 22)
    with pytest.raises(TargetError, match="too old"):
        proto.onnx_package()
