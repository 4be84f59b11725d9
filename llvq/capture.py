"""Capture: an `nn.Module` on `meta` becomes a program at level `captured`.

The export IR is kept as `torch.export` gives it (never core ATen: attention, norms and linears
would dissolve). What was asked for is compared with what was obtained, and the parameters stay on
`meta`, so a 5B model is captured in seconds and half a gigabyte.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.fx.node import map_aggregate

from llvq.errors import CaptureError
from llvq.program import (
    InputSpec,
    KvState,
    LoopState,
    Program,
    output_node,
    placeholders,
)
from llvq.recipe import unknown
from llvq.runtime.contract import Rate
from llvq.weights import WeightRecord


def capture(
    module: nn.Module,
    inputs: Mapping[str, Any],
    *,
    rates: Mapping[str, Rate],
    kv_states: Sequence[KvState] = (),
    loop_states: Sequence[LoopState] = (),
) -> Program:
    """Capture `module(**inputs)`, a call that returns a dict of (lists of) tensors.

    `inputs` are example tensors (or lists of them) on any device; only dtype and shape matter.
    `rates` gives the rate of each input; lists share one. Raises CaptureError.
    """
    constants = _real_constants(module)
    module = module.to("meta").requires_grad_(False)
    examples = {name: pytree.tree_map(_meta, value) for name, value in inputs.items()}
    exported = _export(module, examples)
    specs = _input_specs(examples, rates)
    graph_module = _plain(exported.module(check_guards=False))
    _check_inputs(graph_module.graph, specs)
    outputs = tuple(_flat_names(_output_tree(exported)))
    return Program(
        graphs={"chunk": graph_module},
        inputs=specs,
        outputs=outputs,
        kv_states=tuple(kv_states),
        loop_states=tuple(loop_states),
        weights=_copy_records(graph_module),
        constants=constants,
    )


def from_exported(exported: torch.export.ExportedProgram, *, rates: Mapping[str, Rate]) -> Program:
    """A program from somebody else's `ExportedProgram` (static shapes, any device).

    `rates` maps input names to rates; an input not named changes with every call.
    Raises CaptureError, and RecipeError for a name that is no input.
    """
    gm = _plain(exported.module(check_guards=False))
    _forget_device(gm.graph)
    specs = _tensor_inputs(gm.graph, rates)
    gm.recompile()
    names = [spec.name for spec in specs]
    for name in rates:
        if name not in names:
            raise unknown("input", name, names)
    constants = {name: t for name, t in exported.constants.items() if isinstance(t, Tensor)}
    results = pytree.tree_leaves(output_node(gm.graph).args)
    if not all(isinstance(result, Node) for result in results):
        raise CaptureError(
            "the exported program returns something that is not a tensor",
            because=f"its outputs are {', '.join(map(str, results))}",
            fix="export a module that returns tensors only",
        )
    outputs = tuple(f"output.{i}" for i in range(len(results)))
    return Program(
        graphs={"chunk": gm},
        inputs=tuple(specs),
        outputs=outputs,
        weights=_copy_records(gm),
        constants=constants,
    )


def _meta(value: Tensor) -> Tensor:
    """A fresh meta twin; fresh, because two inputs that alias become one graph input."""
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _real_constants(module: nn.Module) -> dict[str, Tensor]:
    """Buffers outside the state dict: they come from the configuration, not from a file."""
    kept = set(module.state_dict())
    return {
        name: buffer.detach().clone()
        for name, buffer in module.named_buffers()
        if name not in kept and buffer.device.type != "meta"
    }


def _export(module: nn.Module, examples: dict[str, Any]) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, (), examples, strict=False)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CaptureError(
            f"torch.export could not capture {type(module).__name__}",
            where=_model_line(error),
            because=str(error).strip().splitlines()[0],
            fix="make the module free of host syncs, data-dependent Python and in-place state",
        ) from error


def _model_line(error: BaseException) -> str | None:
    """The line of the model's own code at which torch gave up: the innermost outside torch."""
    frames = traceback.extract_tb(error.__traceback__)
    torch_folder = str(Path(torch.__file__).parent)
    own = [f for f in frames if not f.filename.startswith((torch_folder, __file__))]
    return f"{own[-1].filename}:{own[-1].lineno}   {own[-1].line}".rstrip() if own else None


def _plain(gm: GraphModule) -> GraphModule:
    """The same graph with flat inputs and outputs and meta tensors as values."""
    graph: Graph = gm.graph
    graph.set_codegen(CodeGen())
    output = output_node(graph)
    output.args = (tuple(pytree.tree_leaves(output.args[0])),)
    for node in graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = _meta(_attribute(gm, str(node.target)))
        elif node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor):
            continue
        elif "val" in node.meta:
            node.meta["val"] = pytree.tree_map_only(Tensor, _meta_strided, node.meta["val"])
    plain = GraphModule(gm, graph)
    plain.recompile()
    return plain


def _tensor_inputs(graph: Graph, rates: Mapping[str, Rate]) -> list[InputSpec]:
    """The inputs that are tensors; unused constants among the placeholders go."""
    specs = []
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            if node.users:
                raise CaptureError(
                    f"input {node.name!r} is not a tensor",
                    because="its value is compiled in as a constant, so it cannot be an input",
                    fix="export the module without that argument",
                )
            graph.erase_node(node)
            continue
        rate = rates.get(node.name, "call")
        _check_static(node.name, value.shape)
        specs.append(InputSpec(node.name, value.dtype, tuple(value.shape), rate))
    return specs


def _forget_device(graph: Graph) -> None:
    """A model exported on a device names it where it makes tensors; a program names none."""
    for node in graph.nodes:
        node.args = map_aggregate(node.args, _as_meta)
        node.kwargs = map_aggregate(node.kwargs, _as_meta)


def _as_meta(argument: Any) -> Any:
    return torch.device("meta") if isinstance(argument, torch.device) else argument


def _meta_strided(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _attribute(module: nn.Module, path: str) -> Tensor:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _flat_names(tree: Any) -> list[str]:
    """Dotted names of the leaves of nested dicts and lists: {"k": [a, b]} -> k.0, k.1."""
    leaves = pytree.tree_flatten_with_path(tree)[0]
    return [".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
            for path, _ in leaves]  # fmt: skip


def _output_tree(exported: torch.export.ExportedProgram) -> Any:
    spec = exported.call_spec.out_spec
    assert spec is not None
    return pytree.tree_unflatten(range(spec.num_leaves), spec)


def _input_specs(examples: Mapping[str, Any], rates: Mapping[str, Rate]) -> tuple[InputSpec, ...]:
    specs = []
    leaves = pytree.tree_leaves(examples)
    for name, tensor in zip(_flat_names(examples), leaves, strict=True):
        rate = rates.get(name.split(".")[0])
        if rate is None:
            raise CaptureError(
                f"input {name!r} has no rate",
                because="the cut into stages needs to know how often it changes",
                fix=f"give it one of {', '.join(get_args(Rate))} in `rates`",
            )
        specs.append(InputSpec(name, tensor.dtype, tuple(tensor.shape), rate))
    return tuple(specs)


def _check_inputs(graph: Graph, specs: tuple[InputSpec, ...]) -> None:
    """What was obtained must be what was asked for, input by input."""
    found = placeholders(graph)
    if len(found) != len(specs):
        raise CaptureError(
            f"asked for {len(specs)} inputs, the export has {len(found)}",
            fix="pass only tensors, or lists of tensors",
        )
    for node, spec in zip(found, specs, strict=True):
        obtained = node.meta["val"]
        if tuple(obtained.shape) != spec.shape or obtained.dtype != spec.dtype:
            raise CaptureError(
                f"input {spec.name} was specialized",
                because=f"asked for {spec.dtype} {spec.shape}, obtained {obtained.dtype} "
                f"{tuple(obtained.shape)}",
                fix="remove the Python branch or reshape that depends on its size",
            )


def _check_static(name: str, shape: Sequence[object]) -> None:
    if not all(type(size) is int for size in shape):
        raise CaptureError(
            f"input {name} has dynamic shape {tuple(shape)}",
            because="llvq compiles one static shape per bucket",
            fix="export without dynamic_shapes, once per size",
        )


def _copy_records(gm: GraphModule) -> dict[str, WeightRecord]:
    reads = [node for node in gm.graph.nodes if node.op == "get_attr"]
    dtypes = {str(node.target): node.meta["val"].dtype for node in reads}
    return {name: WeightRecord(name, "copy", (name,), dtype=dtypes[name]) for name in dtypes}
