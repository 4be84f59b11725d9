"""The builder: shapes and dtypes of what it makes, as onnx infers them; nothing twice."""

from __future__ import annotations

import pytest
import torch

from llvq.backends.onnx.builder import Builder, broadcast
from llvq.backends.onnx.records import Value, Weight

X = Value("x", torch.float32, (2, 3, 4))


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (3,)), ((1, 3), (2, 1)), ((), (4, 1)), ((5, 1, 2), (3, 1))]
)
def test_shapes_broadcast_as_those_of_torch(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert broadcast(a, b) == tuple(torch.broadcast_shapes(a, b))
    assert broadcast((None, 1), (1, 3)) == broadcast((1, 3), (None, 1)) == (None, 3)


def test_the_same_call_is_made_once() -> None:
    b = Builder(scope="node")
    first, again, other = b.mul(X, 2.0), b.mul(X, 2.0), b.mul(X, 3.0)
    assert first is again and first.name == "node.Mul" and other.name == "node.Mul.1"
    assert len(b.calls) == 2


def test_constants_of_equal_bytes_are_told_apart_by_dtype() -> None:
    b = Builder()
    assert b.scalar(0, torch.int32) is b.scalar(0, torch.int32)
    assert b.scalar(0, torch.int32) != b.scalar(0, torch.float32)
    assert b.sizes(0) != b.constant(torch.tensor(0))


def test_a_weight_is_an_initializer_once_and_its_rows_are_another() -> None:
    b, weight = Builder(), Weight("w", torch.uint8, (4, 8))
    whole, rows = (b.weight(w, w.dtype, w.shape) for w in (weight, weight.rows(2, 2)))
    assert b.weight(weight, torch.uint8, (4, 8)) is whole
    assert [whole.name, rows.name] == list(b.initializers) == ["w", "w.2"]


def test_both_sides_are_promoted() -> None:
    b = Builder()
    half = Value("h", torch.bfloat16, (4,))
    assert b.add(X, half).dtype == torch.float32
    assert [call.op for call in b.calls] == ["Cast", "Add"]


def test_shapes_of_calls() -> None:
    b = Builder()
    open_ = Value("t", torch.int64, (None,))
    assert b.reduce("ReduceSum", X).shape == ()
    assert b.reduce("ReduceSum", X, [-1]).shape == (2, 3)
    assert b.reduce("ReduceSum", X, [0], keep=True).shape == (1, 3, 4)
    assert b.gather(X, open_, 1).shape == (2, None, 4)
    assert b.concat([b.gather(X, open_, 1), X], 1).shape == (2, None, 4)
    assert b.concat([X, X], -1).shape == (2, 3, 8)
    assert b.matmul(X, Value("w", torch.float32, (4, 5))).shape == (2, 3, 5)
    assert b.transpose(X, (2, 0, 1)).shape == (4, 2, 3)


def test_what_changes_nothing_is_no_call() -> None:
    b = Builder()
    assert b.reshape(X, (2, 3, 4)) is X and b.cast(X, torch.float32) is X
    assert b.concat([X], 0) is X and not b.calls
