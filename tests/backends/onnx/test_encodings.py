"""Both encodings of NVFP4 levels, against ml_dtypes, on every level, tie and sign."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from llvq.backends.onnx import proto
from llvq.backends.onnx.builder import Builder
from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.encodings import BY_TABLE, BY_TYPE, Encoding, blocks, joined, unpack
from llvq.backends.onnx.records import Value
from llvq.backends.onnx.translate import OnnxGraph
from tests.backends.onnx.conftest import Array, run_onnxruntime

EIGHTHS = np.arange(-64, 64, dtype=np.float32).reshape(8, 16) / 8
"""Every value of E2M1, every tie between two, and what lies beyond 6."""


def run(b: Builder, inputs: list[Value], output: Value, feed: dict[str, Array]) -> list[Array]:
    """By onnx.reference, and by onnxruntime where it knows the types."""
    initializers = tuple(b.initializers.values())
    graph = OnnxGraph("test", tuple(inputs), (output,), tuple(b.calls), initializers)
    model = proto.model(graph, DIALECTS["standard"], {}, {})
    found = [ReferenceEvaluator(model).run(None, feed)[0]]
    if not any(call.op == "QuantizeLinear" for call in graph.calls):
        found += run_onnxruntime(model.SerializeToString(), feed)
    return found


@pytest.mark.parametrize("encoding", [BY_TYPE, BY_TABLE], ids=["type", "table"])
@pytest.mark.parametrize("step", [1.0, 0.5, 3.0])
def test_levels_are_rounded_to_nearest_ties_to_even(encoding: Encoding, step: float) -> None:
    b = Builder()
    x, steps = Value("x", torch.float32, (8, 16)), Value("s", torch.float32, (8, 1))
    decoded = encoding.decode(b, encoding.encode(b, x, steps), steps)
    feed = {"x": EIGHTHS * np.float32(step), "s": np.full((8, 1), step, np.float32)}
    wanted = EIGHTHS.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * np.float32(step)
    for found in run(b, [x, steps], decoded, feed):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("encoding", [BY_TYPE, BY_TABLE], ids=["type", "table"])
def test_a_block_whose_step_is_zero_is_zero(encoding: Encoding) -> None:
    b = Builder()
    x, steps = Value("x", torch.float32, (8, 16)), Value("s", torch.float32, (8, 1))
    codes = encoding.encode(b, x, steps)
    decoded = encoding.decode(b, codes, Value("one", torch.float32, (8, 1)))
    inputs = [x, steps, Value("one", torch.float32, (8, 1))]
    feed = {"x": EIGHTHS, "s": np.zeros((8, 1), np.float32), "one": np.ones((8, 1), np.float32)}
    for found in run(b, inputs, decoded, feed):
        assert not found.any()


def test_packed_codes_are_read_by_a_table() -> None:
    b = Builder()
    codes = Value("c", torch.uint8, (256,))
    nibbles = np.arange(256, dtype=np.uint8)
    pairs = np.stack([nibbles & 15, nibbles >> 4], axis=-1).reshape(-1)
    wanted = pairs.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    for found in run(b, [codes], unpack(b, codes), {"c": nibbles}):
        assert np.array_equal(found, wanted)


def test_blocks_are_the_last_dimension() -> None:
    b, x = Builder(), Value("x", torch.float32, (2, 48))
    assert blocks(b, x).shape == (2, 3, 16)
    assert joined(b, blocks(b, x)).shape == (2, 48)
