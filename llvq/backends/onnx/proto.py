"""Records -> the protobuf of ONNX. The only module that builds one."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import llvq
from llvq.backends.onnx.dialects import IR_VERSION, OPSET, Dialect
from llvq.backends.onnx.elements import ELEMENT_TYPES
from llvq.backends.onnx.external_data import FILE
from llvq.backends.onnx.records import Call, Initializer, Value, Weight
from llvq.backends.onnx.translate import OnnxGraph
from llvq.errors import TargetError


def onnx_package() -> ModuleType:
    """Raises TargetError if onnx is not installed, or knows no FP4."""
    try:
        import onnx
    except ImportError as error:
        raise TargetError(
            "writing ONNX needs the onnx package",
            because=str(error),
            fix="pip install 'llvq[onnx]'",
        ) from error
    if onnx.defs.onnx_opset_version() < OPSET:
        raise TargetError(
            f"onnx {onnx.__version__} is too old",
            because=f"FLOAT4E2M1 came with opset {OPSET}",
            fix="pip install 'onnx>=1.18'",
        )
    package: ModuleType = onnx
    return package


def model(
    graph: OnnxGraph, dialect: Dialect, offsets: Mapping[str, int], facts: Mapping[str, str]
) -> Any:
    """A ModelProto. `offsets` are those of `external_data.layout`; `facts` become its metadata."""
    helper = onnx_package().helper
    proto = helper.make_model(
        helper.make_graph(
            [_node(entry, index) for index, entry in enumerate(graph.calls)],
            graph.name,
            [_value_info(value) for value in graph.inputs],
            [_value_info(value) for value in graph.outputs],
            initializer=[_tensor(entry, offsets) for entry in graph.initializers],
            value_info=[_value_info(v) for c in graph.calls if c.domain for v in c.outputs],
        ),
        opset_imports=[
            helper.make_opsetid("", OPSET),
            *(helper.make_opsetid(domain, 1) for domain in dialect.domains),
        ],
        ir_version=IR_VERSION,
        producer_name="llvq",
        producer_version=llvq.__version__,
    )
    helper.set_model_props(proto, dict(facts))
    return proto


def _value_info(value: Value) -> Any:
    """A size that is not known is named after the input it is of."""
    shape = [f"{value.name}_size" if size is None else size for size in value.shape]
    element = ELEMENT_TYPES[value.dtype]
    return onnx_package().helper.make_tensor_value_info(value.name, element, shape)


def _node(entry: Call, index: int) -> Any:
    return onnx_package().helper.make_node(
        entry.op,
        list(entry.inputs),
        [value.name for value in entry.outputs],
        name=f"{index}:{entry.outputs[0].name}",
        doc_string=entry.origin or None,
        domain=entry.domain or None,
        **dict(entry.attributes),
    )


def _tensor(entry: Initializer, offsets: Mapping[str, int]) -> Any:
    onnx = onnx_package()
    value, source = entry.value, entry.source
    tensor = onnx.TensorProto(name=value.name, data_type=ELEMENT_TYPES[value.dtype])
    tensor.dims.extend(value.shape)
    if not isinstance(source, Weight):
        tensor.raw_data = source
        return tensor
    tensor.data_location = onnx.TensorProto.EXTERNAL
    place = {"location": FILE, "offset": offsets[source.name] + source.offset}
    for key, text in {**place, "length": source.nbytes}.items():
        tensor.external_data.add(key=key, value=str(text))
    return tensor
