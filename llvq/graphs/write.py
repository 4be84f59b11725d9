"""GraphModule -> JSON document, and the digest of its structure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen

from llvq import canonical_json
from llvq.graphs.ops import op_name
from llvq.graphs.record import bad_graph, parse
from llvq.graphs.values import encode, encode_val

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)


def dump(gm: GraphModule) -> dict[str, Any]:
    """The graph as plain JSON, deterministic, without weights, devices and absolute paths.

    Raises ArtifactError naming the node for an operator or a value a stage graph may not hold.
    """
    nodes = []
    for node in gm.graph.nodes:
        try:
            nodes.append(_dump_node(gm, node))
        except ValueError as error:
            raise bad_graph(str(error), where=_where(node)) from error
    document = {"nodes": nodes}
    parse(document)
    return document


def digest(gm: GraphModule) -> str:
    """sha256 of what the graph computes: the dump without where each node came from."""
    nodes = []
    for record in parse(dump(gm)):
        structure = (record.name, record.op, record.target, record.args, record.kwargs, record.val)
        nodes.append([*structure, _implementation(record.llvq)])
    return hashlib.sha256(canonical_json.dumps(nodes)).hexdigest()


def digest_all(graphs: Mapping[str, GraphModule]) -> str:
    """sha256 over the digests of several graphs by name."""
    digests = {name: digest(gm) for name, gm in graphs.items()}
    return hashlib.sha256(canonical_json.dumps(digests)).hexdigest()


def _dump_node(gm: GraphModule, node: Node) -> dict[str, Any]:
    custom = node.meta.get("custom") or {}
    return {
        "name": node.name,
        "op": node.op,
        "target": op_name(node.target) if node.op == "call_function" else str(node.target),
        "args": [encode(item) for item in args_of(gm, node)],
        "kwargs": {key: _encode_keyword(key, value) for key, value in node.kwargs.items()},
        "val": encode_val(_val(gm, node)),
        "module": module_path(node),
        "source": source_line(node),
        "llvq": encode(custom.get("llvq")),
    }


def args_of(gm: GraphModule, node: Node) -> tuple[Any, ...]:
    """A graph of torch.export keeps its output flat and the tree beside it; here they are one."""
    codegen = gm.graph._codegen
    if node.op != "output" or not isinstance(codegen, _PyTreeCodeGen):
        return node.args
    if codegen.pytree_info.out_spec is None:
        return node.args
    leaves = node.args[0]
    assert isinstance(leaves, list | tuple)
    return (codegen.pytree_info.out_spec.unflatten(leaves),)


def _encode_keyword(key: str, value: Any) -> Any:
    # A device may also be spelled as a string; as any device it becomes that of the load.
    return {"device": "target"} if key == "device" and isinstance(value, str) else encode(value)


def _val(gm: GraphModule, node: Node) -> Any:
    val = node.meta.get("val")
    if val is None and node.op == "get_attr":
        return weight(gm, str(node.target))
    return val


def weight(gm: GraphModule, name: str) -> torch.Tensor:
    """The parameter or buffer `blocks.0.q.weight`. ValueError if there is none."""
    path, _, leaf = name.rpartition(".")
    try:
        tensor = getattr(gm.get_submodule(path), leaf)
    except AttributeError as error:
        raise ValueError(f"weight {name} does not exist") from error
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"weight {name} is a {type(tensor).__name__}")
    return tensor


def module_path(node: Node) -> str:
    """`blocks.0.self_attn.q`: from the export, else from the rule that made it, else empty."""
    stack = node.meta.get("nn_module_stack")
    if stack:
        return str(list(stack.values())[-1][0]).removeprefix("L['self'].")
    return _from_rule(node, "module")


def source_line(node: Node) -> str:
    """`dit.py:88`: the innermost frame outside torch; else from the rule; else empty."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    for path, line in reversed(frames):
        if not path.startswith(_TORCH):
            return f"{Path(path).name}:{line}"
    return _from_rule(node, "source")


def _from_rule(node: Node, key: str) -> str:
    custom = node.meta.get("custom") or {}
    record = custom.get("llvq")
    return str(record.get(key, "")) if isinstance(record, dict) else ""


def _implementation(llvq: Any) -> Any:
    """The kernel a node was lowered to is structure; which rule made the node is not."""
    if not isinstance(llvq, dict):
        return None
    return dict(llvq.get("dict", [])).get("impl")


def _where(node: Node) -> str:
    return " ".join(filter(None, (f"node {node.name}", module_path(node), source_line(node))))
