"""JSON document -> GraphModule, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from llvq.errors import ArtifactError
from llvq.graphs.ops import OPERATORS, resolve
from llvq.graphs.record import Record, bad_graph, parse
from llvq.graphs.values import decode, decode_val
from llvq.sources import TensorSpec


def ops_used(document: Any) -> set[str]:
    """Names of the operators a graph document calls, without looking one up.

    The allowed functions of `operator` are left out: they belong to the format.
    """
    return {r.target for r in parse(document) if r.op == "call_function"} - set(OPERATORS)


def weights_used(document: Any) -> set[str]:
    """Names of the weights a graph document reads. Builds nothing."""
    return {r.target for r in parse(document) if r.op == "get_attr"}


def signature(document: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Dtypes and shapes of what a stage graph takes and of what it returns, a flat tuple.

    Builds nothing. Raises ArtifactError.
    """
    records = parse(document)
    values = {r.name: r.val for r in records}
    results = records[-1].args[0]
    returned = results.get("tuple") if isinstance(results, Mapping) else None
    if not isinstance(returned, list) or not all(_is_node(item, values) for item in returned):
        raise bad_graph("the graph does not return a tuple of nodes")
    inputs = [_spec(r.name, r.val) for r in records if r.op == "placeholder"]
    return inputs, [_spec(item["node"], values[item["node"]]) for item in returned]


def load(document: Any, *, device: torch.device | str) -> GraphModule:
    """The graph, its device arguments on `device`, its weights unset (on `meta`).

    Raises ArtifactError naming the node: an operator unknown in this process (import what registers
    `llvq` first), a malformed document. Nothing is built before every operator is known.
    """
    records = parse(document)
    targets = {r.name: _target(r) for r in records}
    # `cuda` alone would differ from the device of a tensor, which has an index.
    exact = torch.empty(0, device=device).device
    graph, nodes, unset = Graph(), dict[str, Node](), dict[str, torch.Tensor]()
    for record in records:
        try:
            nodes[record.name] = _add(graph, record, targets[record.name], nodes, exact)
            if record.op == "get_attr":
                _declare(unset, record.target, nodes[record.name].meta["val"])
        except ValueError as error:
            raise bad_graph(str(error), where=_where(record)) from error
    _check_hierarchy(unset)
    return GraphModule(unset, graph)


def weights(gm: GraphModule) -> dict[str, TensorSpec]:
    """Dtype and shape of every weight the graph reads, by dotted name, in order of first use."""
    found = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            val = node.meta["val"]
            found[str(node.target)] = TensorSpec(val.dtype, tuple(val.shape))
    return found


def attach(gm: GraphModule, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set the weights of a graph: exactly those of `weights(gm)`, as they are, not copied.

    Raises ArtifactError listing every missing, surplus and misshapen tensor; then none is set.
    """
    specs = weights(gm)
    check_weights(specs, tensors)
    for name in specs:
        path, _, leaf = name.rpartition(".")
        owner = gm.get_submodule(path)
        delattr(owner, leaf)
        owner.register_buffer(leaf, tensors[name].detach())


def check_weights(specs: Mapping[str, TensorSpec], tensors: Mapping[str, torch.Tensor]) -> None:
    """The tensors are those of `specs`. Raises ArtifactError listing which are not."""
    problems = [f"{name} is missing" for name in specs if name not in tensors]
    problems += [f"{name} is not of this graph" for name in tensors if name not in specs]
    for name in specs.keys() & tensors.keys():
        got, want = tensors[name], specs[name]
        if TensorSpec(got.dtype, tuple(got.shape)) != want:
            problems.append(
                f"{name} is {got.dtype} {list(got.shape)}, not {want.dtype} {list(want.shape)}"
            )
    if problems:
        raise ArtifactError(
            f"{len(problems)} weights do not fit the graph: {'; '.join(sorted(problems))}",
            because="a graph runs only with the weights it was compiled for",
            fix="attach the tensors of the box that the graph came from",
        )


def _is_node(item: Any, values: Mapping[str, Any]) -> bool:
    name = item.get("node") if isinstance(item, Mapping) else None
    return isinstance(name, str) and name in values


def _spec(name: str, encoded: Any) -> TensorSpec:
    try:
        value = decode_val(encoded)
    except ValueError as error:
        raise bad_graph(str(error), where=f"node {name}") from error
    if not isinstance(value, torch.Tensor):
        raise bad_graph("it is not a tensor", where=f"node {name}")
    return TensorSpec(value.dtype, tuple(value.shape))


def _target(record: Record) -> Callable[..., Any] | str:
    if record.op != "call_function":
        return record.target
    try:
        return resolve(record.target)
    except ValueError as error:
        raise bad_graph(str(error), where=_where(record)) from error


def _add(
    graph: Graph,
    record: Record,
    target: Callable[..., Any] | str,
    nodes: Mapping[str, Node],
    device: torch.device,
) -> Node:
    args = tuple(decode(item, nodes=nodes, device=device) for item in record.args)
    kwargs = {k: decode(item, nodes=nodes, device=device) for k, item in record.kwargs.items()}
    node = graph.create_node(record.op, target, args, kwargs, name=record.name)
    if node.name != record.name:
        raise ValueError(f"{record.name!r} is not a legal node name")
    if record.op != "output":
        node.meta["val"] = decode_val(record.val)
    if record.module:
        node.meta["nn_module_stack"] = {record.module: (record.module, "")}
    if record.source:
        path, _, line = record.source.partition(":")
        node.meta["stack_trace"] = f'File "{path}", line {line}'
    if record.llvq is not None:
        node.meta["custom"] = {"llvq": decode(record.llvq)}
    return node


def _declare(unset: dict[str, torch.Tensor], name: str, val: Any) -> None:
    if not isinstance(val, torch.Tensor):
        raise ValueError(f"weight {name} has no dtype and shape")
    known = unset.setdefault(name, val)
    if (known.dtype, known.shape) != (val.dtype, val.shape):
        raise ValueError(f"weight {name} has two shapes")


def _check_hierarchy(unset: Mapping[str, torch.Tensor]) -> None:
    for name in unset:
        for i, char in enumerate(name):
            if char == "." and name[:i] in unset:
                raise bad_graph(f"{name[:i]} is both a weight and the module of {name}")


def _where(record: Record) -> str:
    return " ".join(filter(None, (f"node {record.name}", record.module, record.source)))
