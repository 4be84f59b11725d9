"""The dialects of ONNX that a stage can be written in, as data.

standard: only operators of ONNX 23; NVFP4 is FLOAT4E2M1 with two-level DequantizeLinear. The
    reference evaluator of ONNX runs it.
trt: as ModelOpt writes it for TensorRT: activations by its TRT_FP4DynamicQuantize, which scales by
    the max rule and wants a constant second scale. So x is divided by its dynamic global scale
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
    """`held` maps dtypes of the program to those that stand for them in the model.

    `through` is what bytes are cast to before anything is computed with them.
    """

    name: str
    quantize: Callable[[Builder, Value, str], Quantized]
    encoding: Encoding
    held: Mapping[torch.dtype, torch.dtype]
    through: torch.dtype = torch.int32
    domains: tuple[str, ...] = ()

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.held.get(dtype, dtype)


def quantize_by_type(b: Builder, x: Value, rule: str) -> Quantized:
    return quantization.quantize(b, x, rule, BY_TYPE)


def quantize_by_table(b: Builder, x: Value, rule: str) -> Quantized:
    return quantization.quantize(b, x, rule, BY_TABLE)


def quantize_by_trt(b: Builder, x: Value, rule: str) -> Quantized:
    """Block scales are for x / g, so that the second scale is the constant that TensorRT wants."""
    quantization.check_rule(rule, ("max",))
    x = b.cast(x, torch.float32)
    g = quantization.global_scale(b, b.reduce("ReduceMax", b.call("Abs", x)), rule)
    one = b.scalar(1.0, torch.float32)
    *rows, width = x.shape
    assert width is not None
    results = ((FP4, x.shape), (torch.float8_e4m3fn, (*rows, width // nvfp4.BLOCK)))
    codes, scales = b.calls_of(
        "TRT_FP4DynamicQuantize", (b.div(x, g), one), results, domain=TRT_DOMAIN,
        axis=-1, block_size=nvfp4.BLOCK, scale_type=ELEMENT_TYPES[torch.float8_e4m3fn],
    )  # fmt: skip
    return Quantized(codes, scales, one, outer=g)


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
