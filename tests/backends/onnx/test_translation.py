"""What translations get: operands in the dtype that the dialect holds them in."""

from __future__ import annotations

import pytest
import torch

from llvq.backends.onnx.builder import Builder
from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.records import Value, Weight
from llvq.backends.onnx.translation import Translator, joined, refuse


def test_operands_become_values() -> None:
    t = Translator(Builder(), DIALECTS["portable"])
    value = Value("x", torch.float32, (2,))
    weight, number = Weight("w", torch.bfloat16, (2,)), torch.ones(2, dtype=torch.bfloat16)
    assert t.value(value) is value
    assert t.value(weight).dtype == t.value(number).dtype == torch.float32
    assert t.b.initializers["w"].value.dtype == torch.bfloat16
    assert t.cast(value, torch.bfloat16) is value


def test_the_standard_dialect_keeps_bf16() -> None:
    t = Translator(Builder(), DIALECTS["standard"])
    weight = Weight("w", torch.bfloat16, (2,))
    assert t.value(weight).dtype == torch.bfloat16
    assert t.fp32(weight).dtype == torch.float32


def test_tables_are_joined_and_no_operator_is_in_two() -> None:
    assert joined({"a": refuse}, {"b": refuse}) == {"a": refuse, "b": refuse}
    with pytest.raises(AssertionError):
        joined({"a": refuse}, {"a": refuse})


def test_a_refusal_has_a_reason_and_a_way_out() -> None:
    error = refuse("attention with a mask", "attention over all keys is translated")
    assert error.kind == "target" and error.because and error.fix
