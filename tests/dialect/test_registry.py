"""The registry: every op has its four faces, under the name of its reference."""

from __future__ import annotations

import pytest
import torch

from llvq import dialect
from llvq.dialect import DIALECT, EXACT, Op, known_ops

WRITERS = ("write_page", "write_kept", "ring_write", "ring_write_normed")
OPS = pytest.mark.parametrize("op", DIALECT.values(), ids=DIALECT)


@OPS
def test_an_op_is_a_torch_op_of_the_same_name(op: Op) -> None:
    assert str(op.overload) == f"llvq.{op.name}.default"
    assert op.schema == str(op.overload._schema)
    assert op.reference.__name__ == op.name


@OPS
def test_an_op_is_exported_by_name(op: Op) -> None:
    assert getattr(dialect, op.name) is op
    assert op.name in dialect.__all__


@OPS
def test_a_tolerance_is_a_small_number(op: Op) -> None:
    # A code of E4M3 that rounds the other way moves a value by an eighth, a weight by a sixteenth.
    assert 0 <= op.tolerance.relative < 0.2
    assert 0 <= op.tolerance.flipped < 0.1


@OPS
def test_only_writers_of_pages_and_rings_mutate(op: Op) -> None:
    assert op.overload._schema.is_mutable == (op.name in WRITERS)


def test_quantized_codes_are_exact() -> None:
    exact = {name for name, op in DIALECT.items() if op.tolerance == EXACT}
    assert exact >= {"quantize", "dequantize", "gelu_quantize", "norm_modulate_quantize"}


def test_known_ops_are_what_a_manifest_records() -> None:
    ops = known_ops()
    assert len(ops) == len(DIALECT)
    assert ops["llvq.rope.default"] == str(torch.ops.llvq.rope.default._schema)
