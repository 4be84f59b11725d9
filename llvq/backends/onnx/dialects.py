"""The dialects of ONNX that a stage can be written in, as data.

standard: only operators of ONNX 23; NVFP4 is FLOAT4E2M1 with two-level DequantizeLinear. The
    reference evaluator of ONNX runs it.
trt: as ModelOpt writes it for TensorRT: activations by its TRT_FP4DynamicQuantize, which scales by
    the max rule and wants a constant second scale. Where that is dynamic, x is divided by it
    before, and the product multiplied by it after: the same function, with a second scale of 1.
    TensorRT has no float64: positions are fp32.
portable: types that onnxruntime's CPU computes in. FP4 is a table of bytes, bf16 is fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from llvq.backends.onnx import quantization
from llvq.backends.onnx.builder import Builder
from llvq.backends.onnx.elements import ELEMENT_TYPES, FP4
from llvq.backends.onnx.encodings import BY_TABLE, BY_TYPE, Encoding
from llvq.backends.onnx.quantization import Quantized
from llvq.backends.onnx.records import Value
from llvq.formats import nvfp4

OPSET = 23
IR_VERSION = 11
"""That of ONNX 1.18, the first with FLOAT4E2M1 and opset 23."""

TRT_DOMAIN = "trt"


@dataclass(frozen=True)
class Dialect:
    """quantize(b, x, rule, static global scale or None) -> Quantized.

    `held` maps dtypes of the program to those that stand for them in the model.
    `through` is the only type that bytes are cast to and from.
    """

    name: str
    quantize: Callable[[Builder, Value, str, Value | None], Quantized]
    encoding: Encoding
    held: Mapping[torch.dtype, torch.dtype]
    through: torch.dtype = torch.int32
    domains: tuple[str, ...] = ()

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.held.get(dtype, dtype)


def quantize_by_type(b: Builder, x: Value, rule: str, static: Value | None) -> Quantized:
    return quantization.quantize(b, x, rule, BY_TYPE, static)


def quantize_by_table(b: Builder, x: Value, rule: str, static: Value | None) -> Quantized:
    return quantization.quantize(b, x, rule, BY_TABLE, static)


def quantize_by_trt(b: Builder, x: Value, rule: str, static: Value | None) -> Quantized:
    """The second scale is a constant: the static one, or 1 for x divided by its dynamic one."""
    quantization.check_rule(rule, ("max",))
    x = b.cast(x, torch.float32)
    if static is not None:
        return Quantized(*_dynamic_quantize(b, x, static), static)
    g = quantization.global_scale(b, b.reduce("ReduceMax", b.call("Abs", x)), rule)
    one = b.scalar(1.0, torch.float32)
    return Quantized(*_dynamic_quantize(b, b.div(x, g), one), one, outer=g)


def _dynamic_quantize(b: Builder, x: Value, scale: Value) -> tuple[Value, Value]:
    """Codes and block scales by the operator of TensorRT."""
    *rows, width = x.shape
    assert width is not None
    results = ((FP4, x.shape), (torch.float8_e4m3fn, (*rows, width // nvfp4.BLOCK)))
    codes, scales = b.calls_of(
        "TRT_FP4DynamicQuantize", (x, scale), results, domain=TRT_DOMAIN,
        axis=-1, block_size=nvfp4.BLOCK, scale_type=ELEMENT_TYPES[torch.float8_e4m3fn],
    )  # fmt: skip
    return codes, scales


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("standard", quantize_by_type, BY_TYPE, held={}),
        Dialect(
            "trt",
            quantize_by_trt,
            BY_TYPE,
            held={torch.float64: torch.float32},
            through=torch.float32,
            domains=(TRT_DOMAIN,),
        ),
        Dialect("portable", quantize_by_table, BY_TABLE, held={torch.bfloat16: torch.float32}),
    )
}
