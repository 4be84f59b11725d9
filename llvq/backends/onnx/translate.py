"""A stage graph -> an ONNX graph in records: inputs, calls, initializers, outputs.

What depends on no input and is small (tables of frequencies) is computed here, and so is what has
no elements.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Node

from llvq.backends.onnx import (
    aten_math,
    aten_shapes,
    lowrank_ops,
    model_ops,
    nvfp4_ops,
    page_ops,
)
from llvq.backends.onnx.builder import Builder
from llvq.backends.onnx.dialects import Dialect
from llvq.backends.onnx.quantization import Quantized
from llvq.backends.onnx.records import Call, Initializer, Value, Weight
from llvq.backends.onnx.translation import Translation, Translator, joined
from llvq.errors import TargetError
from llvq.graphs import module_path, source_line
from llvq.runtime.contract import InputSpec

TABLES = (aten_math, aten_shapes, model_ops, nvfp4_ops, lowrank_ops, page_ops)
OPERATORS = joined(*(part.TABLE for part in TABLES))
PAGES, PAGE = "pages.", "page."
LARGE = 1 << 16
"""Elements of a constant that is computed in the graph rather than written into it."""


@dataclass(frozen=True)
class OnnxGraph:
    """Records of one stage. `inputs` are those of its contract that it reads."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    calls: tuple[Call, ...]
    initializers: tuple[Initializer, ...]


def translate(
    name: str,
    gm: GraphModule,
    specs: Sequence[InputSpec],
    outputs: Sequence[str],
    dialect: Dialect,
) -> OnnxGraph:
    """Raises TargetError naming the node, its operator, module and source line."""
    t = Translator(Builder(), dialect)
    inputs = [declared(t.b, spec, dialect) for spec in specs]
    reserved = [t.b.name(output) for output in outputs]
    given = iter(inputs)
    values: dict[Node, Any] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            val = node.meta["val"]
            values[node] = Weight(str(node.target), val.dtype, tuple(val.shape))
        elif node.op == "call_function":
            values[node] = call(t, node, values)
    results = dict(zip(reserved, _returned(t, gm, values), strict=True)) | _written(t, inputs)
    named = tuple(_output(t.b, output, value) for output, value in results.items())
    return _pruned(OnnxGraph(name, tuple(inputs), named, tuple(t.b.calls), ()), t.b)


def declared(b: Builder, spec: InputSpec, dialect: Dialect) -> Value:
    """An input under its name in the contract; FP8 as bytes."""
    is_fp8 = spec.dtype == torch.float8_e4m3fn
    dtype = torch.uint8 if is_fp8 else dialect.dtype(spec.dtype)
    return Value(b.name(spec.name), dtype, spec.shape)


def call(t: Translator, node: Node, values: dict[Node, Any]) -> Any:
    """What a node gives: translated, or computed if it depends on no input."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.target is operator.getitem:
        results: Any = args[0]
        return results[args[1]]
    out = node.meta["val"]
    if isinstance(out, Tensor) and not out.numel():
        return torch.empty(out.shape, dtype=out.dtype)
    leaves = pytree.tree_leaves((args, kwargs), is_leaf=_is_symbolic)
    if not any(map(_is_symbolic, leaves)) and _numel(out) <= LARGE:
        return _computed(node, args, kwargs)
    t.b.scope, t.b.origin = node.name, module_path(node)
    try:
        return _translation(node, args, kwargs)(t, out, *args, **kwargs)
    except TargetError as error:
        raise TargetError(
            error.what, where=_where(node), because=error.because, fix=error.fix
        ) from error


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, Value | Weight | Quantized)


def _numel(out: Any) -> int:
    return sum(leaf.numel() for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor))


def _computed(node: Node, args: Any, kwargs: Any) -> Any:
    """Stages name the device they are loaded for, which is `meta` here."""
    on_cpu = {k: torch.device("cpu") if k == "device" else v for k, v in kwargs.items()}
    assert callable(node.target)
    return node.target(*args, **on_cpu)


def _translation(node: Node, args: Any, kwargs: Any) -> Translation:
    name = str(node.target)
    if name not in OPERATORS:
        raise TargetError(
            f"{name} has no translation to ONNX",
            because=f"{len(OPERATORS)} operators have one, those of denoiser and decoder",
            fix="add one to the table in llvq/backends/onnx, or run this program with llvq",
        )
    try:
        inspect.signature(OPERATORS[name]).bind(None, None, *args, **kwargs)
    except TypeError as error:
        raise TargetError(
            f"{name} is called in a form that has no translation to ONNX",
            because=str(error),
            fix="extend its translation in llvq/backends/onnx, or run this program with llvq",
        ) from error
    return OPERATORS[name]


def _where(node: Node) -> str:
    return "   ".join(filter(None, (f"node {node.name}", module_path(node), source_line(node))))


def _returned(t: Translator, gm: GraphModule, values: dict[Node, Any]) -> list[Value]:
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    results = [values[node] for node in output.args[0]]
    packed = [node for node in output.args[0] if isinstance(values[node], Quantized)]
    if packed:
        raise TargetError(
            "a stage returns NVFP4 codes",
            where=_where(packed[0]),
            because="an ONNX model gives tensors that its caller can read",
            fix="run this program with llvq",
        )
    return [t.value(result) for result in results]


def _written(t: Translator, inputs: Sequence[Value]) -> dict[str, Value]:
    """What the chunk stores in its slot of each page tensor [L, 2, S, ...], as [L, 2, ...]."""
    if not t.written:
        return {}
    b, pages = t.b, [value for value in inputs if value.name.startswith(PAGES)]
    b.scope, b.origin = "pages", ""
    found = {}
    for index, page in enumerate(pages):
        layers = page.shape[0]
        assert layers is not None
        parts = [t.written[layer, which][index] for layer in range(layers) for which in (0, 1)]
        stacked = b.concat(
            [b.call("Unsqueeze", x, b.sizes(0), shape=(1, *x.shape)) for x in parts], 0
        )
        found[b.name(page.name.replace(PAGES, PAGE, 1))] = b.reshape(
            stacked, (layers, 2, *page.shape[3:])
        )
    return found


def _output(b: Builder, name: str, value: Value) -> Value:
    """Under its name: values may be two outputs, or an input too."""
    named = replace(value, name=name)
    b.calls.append(Call("Identity", "", (value.name,), (named,), (), ""))
    return named


def _pruned(graph: OnnxGraph, b: Builder) -> OnnxGraph:
    """Without calls, initializers and inputs that no output depends on."""
    needed = {value.name for value in graph.outputs}
    kept = []
    for entry in reversed(graph.calls):
        if needed & {value.name for value in entry.outputs}:
            kept.append(entry)
            needed.update(entry.inputs)
    return replace(
        graph,
        inputs=tuple(value for value in graph.inputs if value.name in needed),
        calls=tuple(reversed(kept)),
        initializers=tuple(i for name, i in b.initializers.items() if name in needed),
    )
