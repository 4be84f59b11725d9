"""The kernels of a graph are found without a device, and ops that do not fit are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from llvq.backends import implementations
from llvq.backends.base import TARGETS, Target, find_target
from llvq.backends.triton.collect import Launches, collect
from llvq.compiler import Compiled, compile_model
from llvq.dialect import DIALECT
from llvq.errors import TargetError
from llvq.lowered import lower_stages
from llvq.models.config import ModelConfig
from llvq.passes.lower import implementations_of, lower
from llvq.passes.lowering import lower_to_numerics
from llvq.recipe import KvRecipe, Recipe
from llvq.runtime.contract import InputSpec
from tests.backends import toy_ops

bf16 = torch.bfloat16
llvq = torch.ops.llvq


def meta(*sizes: int, dtype: torch.dtype = bf16) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


class Made:
    """A graph in the making, of llvq ops with an implementation."""

    def __init__(self) -> None:
        self.graph, self.inputs = Graph(), list[InputSpec]()

    def input(self, name: str, value: Tensor, allowed: tuple[int, ...] = ()) -> Any:
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        shape = (None, *value.shape[1:]) if allowed else tuple(value.shape)
        self.inputs.append(InputSpec(name, value.dtype, shape, "call", allowed))
        return node

    def call(self, op: str, impl: str, *args: Any) -> Any:
        node = self.graph.call_function(DIALECT[op].overload, args)
        values = torch.fx.node.map_arg(args, lambda n: n.meta["val"])
        node.meta["val"] = DIALECT[op].overload(*values)
        node.meta["custom"] = {"llvq": {"impl": impl, "module": "blocks.0", "source": "dit.py:9"}}
        return node

    def collect(self, *results: Any) -> Launches:
        self.graph.output(results)
        gm = GraphModule(torch.nn.Module(), self.graph)
        return collect({"denoise": gm}, {"denoise": self.inputs})


def gated(made: Made, tokens: int, channels: int, groups: int = 2) -> Any:
    x, y = (made.input(f"{n}{tokens}_{channels}", meta(1, tokens, channels)) for n in "xy")
    gate = made.input(f"g{tokens}_{channels}", meta(1, groups, channels))
    return made.call("gate_residual", "triton", x, y, gate)


@pytest.mark.usefixtures("toy_kernels")
def test_equal_launches_are_one_kernel() -> None:
    made = Made()
    found = made.collect(gated(made, 8, 64), gated(made, 16, 64), gated(made, 8, 96))
    widths = [dict(wanted.constants)["E"] for wanted in found.kernels]
    assert widths == [64, 96]
    assert [call.arguments["x"].shape for call in found.calls] == [(1, 8, 64), (1, 8, 96)]
    assert set(found.kernels.values()) == {toy_ops.gate_residual_kernel}
    assert {call.where for call in found.calls} == {
        "gate_residual_default   blocks.0   dit.py:9",
        "gate_residual_default_2   blocks.0   dit.py:9",
    }


@pytest.mark.usefixtures("toy_kernels")
def test_what_a_library_runs_is_noted_once_and_the_reference_never() -> None:
    made = Made()
    q = made.input("q", meta(1, 6, 2, 16))
    calls = [made.call("attention", impl, q, q, q) for impl in ("torch", "torch", "reference")]
    found = made.collect(*calls)
    assert [(call.op, call.impl) for call in found.calls] == [("attention", "torch")]
    assert not found.kernels


def test_every_length_of_history_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check reads history where there may be one, so the shortest that is some comes first."""
    seen: list[int] = []

    def paged(launch: Any, q: Tensor, table: Tensor, **others: Any) -> Tensor:
        seen.append(table.shape[0])
        launch(toy_ops.gate_residual_kernel, (1,), q, q, q, q, 1, 1, E=1, BLOCK=2)
        return torch.empty_like(q)

    monkeypatch.setitem(implementations.TABLES, "triton", "tests.backends.toy_ops")
    monkeypatch.setitem(toy_ops.OPS, "paged_attention", paged)
    made = Made()
    q = made.input("q", meta(1, 6, 2, 16))
    pages = made.input("pages", meta(1, 2, 4, 6, 2, 16))
    table = made.input("table", meta(3, dtype=torch.int64), (0, 1, 2, 3))
    args = (q, q, q, [pages], table, None, None, None, 0, "none")
    found = made.collect(made.call("paged_attention", "triton", *args))
    assert seen == [1, 2, 3, 0]
    assert [call.arguments["table"].shape for call in found.calls] == [(1,)]


def refused(monkeypatch: pytest.MonkeyPatch, wrapper: Callable[..., Any]) -> TargetError:
    monkeypatch.setitem(implementations.TABLES, "triton", "tests.backends.toy_ops")
    monkeypatch.setitem(toy_ops.OPS, "gate_residual", wrapper)
    made = Made()
    with pytest.raises(TargetError, match=r"llvq\.gate_residual cannot be compiled") as caught:
        made.collect(gated(made, 8, 64))
    assert caught.value.where == "gate_residual_default   blocks.0   dit.py:9"
    return caught.value


def test_an_op_that_refuses_its_arguments_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapper(launch: Any, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        raise ValueError("64 channels are too few")

    assert refused(monkeypatch, wrapper).because == "ValueError: 64 channels are too few"


def test_what_an_op_returns_is_what_the_graph_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapper(launch: Any, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return x.float()

    because = refused(monkeypatch, wrapper).because or ""
    assert "gives float32 [1, 8, 64], the op bfloat16 [1, 8, 64]" in because


@pytest.mark.parametrize("target", TARGETS[1:], ids=lambda t: f"{t.name}-{t.numerics}")
def test_a_whole_model_is_launched_by_what_its_target_names(
    target: Target, compiled_nvfp4: Compiled
) -> None:
    """Every wrapper takes what lowered graphs give it, and returns what they say."""
    stages = lower_stages(compiled_nvfp4.stages, compiled_nvfp4.recipe, target).stages
    gms = {name: stage.graph for name, stage in stages.items()}
    found = collect(gms, {name: stage.inputs for name, stage in stages.items()})
    named = {op for op in implementations_of(gms) if "attention" in op or "linear" in op}
    launched = {f"llvq.{call.op}.default" for call in found.calls}
    assert named <= launched and len(found.kernels) > 8


@pytest.mark.parametrize("name", ["sm_100a", "sm_103a", "sm_120a"])
def test_scores_in_fp4_are_launched_where_the_recipe_asks(
    name: str, tiny_config: ModelConfig
) -> None:
    recipe, target = Recipe(kv=KvRecipe(qk="nvfp4")), find_target(name)
    stages = compile_model(tiny_config, recipe).stages
    gms = {name: stage.graph for name, stage in stages.items()}
    lower_to_numerics(gms, target.numerics, recipe)
    lower(gms, target)
    found = collect(gms, {name: stage.inputs for name, stage in stages.items()})
    assert "llvq.paged_attention_fp4.default" in {f"llvq.{call.op}.default" for call in found.calls}
    assert any(kernel.kernel == "attend_codes" for kernel in found.kernels)
