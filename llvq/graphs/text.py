"""A graph for people: one line per node, in SSA form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from llvq.graphs.ops import op_name
from llvq.graphs.values import DTYPES
from llvq.graphs.write import args_of, module_path, source_line


def text(gm: GraphModule, *, provenance: bool = True) -> str:
    """`%q : bf16[1,7040,3072] = aten.linear(%x, w:blocks.0.q.weight)  # blocks.0.q dit.py:88`.

    Deterministic. With `provenance=False` the comments, which follow every edit of a model's
    source, are left out. Raises ValueError for an operator a stage graph may not call.
    """
    lines = []
    for node in gm.graph.nodes:
        line = _line(gm, node)
        comment = _comment(node) if provenance else ""
        lines.append(f"{line}  # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _line(gm: GraphModule, node: Node) -> str:
    if node.op == "output":
        return f"return {_value(args_of(gm, node)[0])}"
    spec = spec_text(node.meta.get("val"))
    if node.op == "get_attr":
        return f"w:{node.target} : {spec}"
    if node.op == "placeholder":
        return f"%{node.name} : {spec} = input {node.target}"
    arguments = [_value(item) for item in node.args]
    arguments += [f"{key}={_value(item)}" for key, item in sorted(node.kwargs.items())]
    name = op_name(node.target).removesuffix(".default")
    return f"%{node.name} : {spec} = {name}({', '.join(arguments)})"


def spec_text(val: Any) -> str:
    """A value as text: `bf16[1,7040,3072]`; a sequence in parentheses."""
    if isinstance(val, torch.Tensor):
        return f"{DTYPES.get(val.dtype, val.dtype)}[{','.join(str(size) for size in val.shape)}]"
    if isinstance(val, list | tuple):
        return f"({', '.join(spec_text(item) for item in val)})"
    return str(val).lower()


def _value(value: Any) -> str:
    if isinstance(value, Node):
        return f"w:{value.target}" if value.op == "get_attr" else f"%{value.name}"
    if isinstance(value, torch.dtype):
        return DTYPES.get(value, str(value))
    if isinstance(value, torch.device):
        return "target"
    if isinstance(value, tuple):
        inside = ", ".join(_value(item) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_value(item)}' for key, item in value.items())}}}"
    return repr(value) if isinstance(value, str) else str(value).removeprefix("torch.")


def _comment(node: Node) -> str:
    record = (node.meta.get("custom") or {}).get("llvq") or {}
    rule = record.get("rule")
    impl = record.get("impl")
    parts = (
        module_path(node),
        source_line(node),
        f"rule={rule}" if rule else "",
        f"impl={impl}" if impl else "",
    )
    return " ".join(filter(None, parts))
