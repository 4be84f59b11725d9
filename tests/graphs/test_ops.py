from __future__ import annotations

import operator
import os

import pytest
import torch

from llvq.graphs.ops import installed_schemas, op_name, resolve, schema


def test_names_and_operators_are_inverse(llvq_op: torch._ops.OpOverload) -> None:
    for target in (torch.ops.aten.add.Tensor, operator.getitem, llvq_op):
        assert resolve(op_name(target)) is target


@pytest.mark.parametrize("target", [print, os.system, torch.relu, torch.ops.prims.add.default])
def test_other_functions_have_no_name(target: object) -> None:
    with pytest.raises(ValueError, match="operator"):
        op_name(target)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "operator.attrgetter",
        "prims.add.default",
        "aten.linear",
        "aten.no_such_op.default",
        "aten.linear.no_such_overload",
        "aten.__class__.__init__",
        "aten.linear.__call__",
        "aten.save.default",
        "aten.from_file.default",
        "aten.linear.default\n",
        "",
    ],
)
def test_resolve_refuses_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="operator"):
        resolve(name)


def test_installed_schemas_are_those_of_the_operators(llvq_op: torch._ops.OpOverload) -> None:
    found = installed_schemas()
    for name in ("aten.linear.default", "aten.arange.start", op_name(llvq_op)):
        assert found[name] == schema(name)
    assert "aten.save.default" not in found and "aten.from_file.default" not in found
