"""Quantized linears against bf16 of the same shape, each alone, on the device of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import Interpreter, Node

from llvq.bench.timing import Spread, measure
from llvq.runtime.bind import op_of
from llvq.runtime.executable import CompiledStage

# Ops that multiply by a quantized weight. The weight is the first matrix whose rows they return.
QUANTIZED = (
    "nvfp4_linear",
    "nvfp4_linear_lowrank",
    "nvfp4_linear_swizzled",
    "nvfp4_linear_w4a16",
    "fp8_linear",
)
REPEATS = 20
# As many inputs take turns, so that the caches of a GPU do not hold the next one.
COPIES = 4


@dataclass(frozen=True)
class LinearTime:
    """One shape: [tokens, k] times [features, k]. The input is quantized before, by another op."""

    op: str
    tokens: int
    k: int
    features: int
    calls: int
    quantized: Spread
    bf16: Spread

    @property
    def slower(self) -> bool:
        return self.quantized.median > self.bf16.median


@dataclass
class Call:
    """One call of a graph, and how many others are like it."""

    node: Node
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    count: int = 1


def time_linears(
    stage: CompiledStage, given: Mapping[str, Tensor], *, repeats: int = REPEATS
) -> list[LinearTime]:
    """Every distinct shape of quantized linear in a stage, on the values that `given` lead to."""
    with torch.inference_mode():
        return [_time(call, repeats) for call in distinct_calls(stage, given, is_quantized)]


def is_quantized(node: Node) -> bool:
    return op_of(node) in QUANTIZED


def distinct_calls(
    stage: CompiledStage, given: Mapping[str, Tensor], wanted: Callable[[Node], bool]
) -> list[Call]:
    """Run a stage, and keep the first call of each op and shapes, of nodes that are wanted."""
    runner = _Keeping(stage, wanted)
    with torch.inference_mode():
        runner.run(*(given[spec.name].contiguous() for spec in stage.inputs))
    return list(runner.kept.values())


class _Keeping(Interpreter):
    def __init__(self, stage: CompiledStage, wanted: Callable[[Node], bool]) -> None:
        super().__init__(stage.graph)
        self.wanted = wanted
        self.kept: dict[Any, Call] = {}

    def run_node(self, n: Node) -> Any:
        if n.op == "call_function" and self.wanted(n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            key = (str(n.target), *_shapes((args, kwargs)))
            if key in self.kept:
                self.kept[key].count += 1
            else:
                self.kept[key] = Call(n, args, kwargs)
        return super().run_node(n)


def _shapes(tree: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(tree):
        yield (leaf.dtype, *leaf.shape) if isinstance(leaf, Tensor) else leaf


def _time(call: Call, repeats: int) -> LinearTime:
    result = _run(call)
    tokens, features = result.numel() // result.shape[-1], result.shape[-1]
    k = reduction_dim(call)
    timed = partial(measure, device=result.device, repeats=repeats)
    ours = timed([partial(_run, copy) for copy in _copies(call)])
    plain = timed([_bf16_linear(tokens, k, features, result.device) for _ in range(COPIES)])
    return LinearTime(op_of(call.node) or "", tokens, k, features, call.count, ours, plain)


def reduction_dim(call: Call) -> int:
    """K, of the first argument: a byte of NVFP4 codes is two of it."""
    first = call.args[0]
    return first.shape[-1] * (2 if first.dtype == torch.uint8 else 1)


def _run(call: Call) -> Tensor:
    return call.node.target(*call.args, **call.kwargs)  # type: ignore[operator]


def _copies(call: Call) -> Iterator[Call]:
    for _ in range(COPIES):
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (call.args, dict(call.kwargs)))
        yield Call(call.node, args, kwargs)


def _bf16_linear(tokens: int, k: int, features: int, device: torch.device) -> Callable[[], Tensor]:
    """F.linear with a bias, on random values."""
    like: Any = {"dtype": torch.bfloat16, "device": device}
    x, w = torch.randn(tokens, k, **like), torch.randn(features, k, **like)
    return partial(F.linear, x, w, torch.randn(features, **like))
