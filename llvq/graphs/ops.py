"""The operators a stage graph may call, and their names."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

NAMESPACES = ("aten", "llvq")

# They are part of the format, not of torch: no schema, and the manifest does not list them.
OPERATORS: dict[str, Callable[..., Any]] = {
    "operator.getitem": operator.getitem,
    "operator.add": operator.add,
    "operator.sub": operator.sub,
    "operator.mul": operator.mul,
    "operator.floordiv": operator.floordiv,
}

_OP_NAME = re.compile(r"(aten|llvq)\.(\w+)\.(\w+)", re.ASCII)


def op_name(target: object) -> str:
    """The name of a call_function target: `aten.linear.default`. ValueError if it has none here."""
    if isinstance(target, torch._ops.OpOverload) and target.namespace in NAMESPACES:
        return str(target)
    for name, function in OPERATORS.items():
        if target is function:
            return name
    raise ValueError(f"operator {target} is not of {', '.join(NAMESPACES)} nor {_operators()}")


def resolve(name: str) -> Callable[..., Any]:
    """The operator called `name`. ValueError if it is not allowed or not registered."""
    if name in OPERATORS:
        return OPERATORS[name]
    match = _OP_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"operator {name} is not of {', '.join(NAMESPACES)} nor {_operators()}")
    namespace, packet_name, overload = match.groups()
    packet = getattr(getattr(torch.ops, namespace), packet_name, None)
    target = getattr(packet, overload, None)
    if not isinstance(target, torch._ops.OpOverload):
        raise ValueError(f"operator {name} is not registered in this process")
    if _touches_files(str(target._schema)):
        raise ValueError(f"operator {name} reads or writes files")
    return target


def schema(name: str) -> str:
    """The schema string of `aten.*` or `llvq.*`. ValueError as for `resolve`."""
    target = resolve(name)
    if not isinstance(target, torch._ops.OpOverload):
        raise ValueError(f"operator {name} is a Python function and has no schema")
    return str(target._schema)


def installed_schemas() -> dict[str, str]:
    """Name -> schema of every operator a graph may call in this process (about 3800, 30 ms)."""
    found = {}
    for op_schema in torch._C._jit_get_all_schemas():
        namespace, _, packet = op_schema.name.partition("::")
        if namespace in NAMESPACES and not _touches_files(str(op_schema)):
            found[f"{namespace}.{packet}.{op_schema.overload_name or 'default'}"] = str(op_schema)
    return found


def _touches_files(op_schema: str) -> bool:
    """aten.save and aten.from_file: a graph must not reach the file system."""
    return "str filename" in op_schema


def _operators() -> str:
    return ", ".join(OPERATORS)
