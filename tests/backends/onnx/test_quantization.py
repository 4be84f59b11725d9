"""The choice of scales, in onnxruntime, against the bytes that llvq's own quantizer gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llvq.backends.onnx import proto
from llvq.backends.onnx.builder import Builder
from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.encodings import BY_TABLE, decode_levels
from llvq.backends.onnx.quantization import RULES, quantize
from llvq.backends.onnx.records import Value
from llvq.backends.onnx.translate import OnnxGraph
from llvq.formats import nvfp4
from tests.backends.onnx.conftest import run_onnxruntime

ROWS, K = 4, 32


def model_of(rule: str) -> bytes:
    """x -> levels, scales, global scale, and the decoded values."""
    b, x = Builder(), Value("x", torch.float32, (ROWS, K))
    q = quantize(b, x, rule, BY_TABLE)
    decoded = decode_levels(b, q.codes, b.mul(q.scales, q.global_scale))
    outputs = (q.codes, q.scales, q.global_scale, decoded)
    graph = OnnxGraph("t", (x,), outputs, tuple(b.calls), tuple(b.initializers.values()))
    data: bytes = proto.model(graph, DIALECTS["portable"], {}, {}).SerializeToString()
    return data


MODELS = {rule: model_of(rule) for rule in RULES}


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 2**31), spread=st.floats(0, 12))
@settings(max_examples=15, deadline=None)
def test_scales_and_values_are_bit_for_bit_those_of_the_format(
    rule: str, seed: int, spread: float
) -> None:
    """bf16 noise has many ties, so this holds the order of every operation."""
    random = torch.Generator().manual_seed(seed)
    size = torch.randn(ROWS, K // 16, 1, generator=random).mul(spread).exp2()
    x = (torch.randn(ROWS, K // 16, 16, generator=random) * size).flatten(1).bfloat16().float()
    wanted = nvfp4.quantize(x, block_rule=rule)
    _, scales, g, decoded = run_onnxruntime(MODELS[rule], {"x": x.numpy()})
    assert g == wanted.global_scale.numpy()
    assert np.array_equal(scales, wanted.scales.float().numpy())
    assert np.array_equal(decoded, nvfp4.dequantize(*wanted, torch.float32).numpy())
