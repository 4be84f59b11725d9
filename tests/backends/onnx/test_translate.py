"""From a stage graph to records: names of the contract, what is computed, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from llvq.backends.onnx.dialects import DIALECTS
from llvq.backends.onnx.translate import LARGE, translate
from llvq.errors import TargetError
from llvq.runtime.contract import InputSpec
from tests.backends.onnx.conftest import run_as, traced, translated

aten = torch.ops.aten


def adds(count: int) -> GraphModule:
    """x + a table of `count` rows that depends on no input."""
    graph = Graph()
    x = graph.placeholder("x")
    table = graph.call_function(aten.arange.default, (2,), {"device": torch.device("cpu")})
    rows = graph.call_function(aten.expand.default, (table, [count, 2]))
    graph.output((graph.call_function(aten.add.Tensor, (x, rows)),))
    return GraphModule({}, graph)


X = torch.tensor([[5, 7]])


def test_what_depends_on_no_input_is_computed_here(tmp_path: Path) -> None:
    graph = translated("standard", adds(3), X)
    assert [call.op for call in graph.calls] == ["Add", "Identity"]
    (found,) = run_as("standard", tmp_path, adds(3), X)
    assert found.tolist() == [[5, 8]] * 3


def test_a_large_constant_is_not_written_into_the_model(tmp_path: Path) -> None:
    graph = translated("standard", adds(LARGE), X)
    assert [call.op for call in graph.calls] == ["Expand", "Add", "Identity"]
    constants = [i.source for i in graph.initializers if isinstance(i.source, bytes)]
    assert sum(map(len, constants)) < 100
    (found,) = run_as("standard", tmp_path, adds(LARGE), X)
    assert found.shape == (LARGE, 2) and found[-1].tolist() == [5, 8]


def test_names_are_those_of_the_contract_and_the_rest_is_pruned() -> None:
    def function(x: Tensor, unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        aten.neg.default(x)
        doubled = aten.add.Tensor(x, x)
        return doubled, doubled, x

    graph = translated("standard", function, torch.ones(2), torch.ones(3))
    assert [value.name for value in graph.inputs] == ["x"]
    assert [value.name for value in graph.outputs] == ["out.0", "out.1", "out.2"]
    assert [call.op for call in graph.calls] == ["Add", "Identity", "Identity", "Identity"]


def test_a_bucketed_size_stays_open() -> None:
    gm, _ = traced(lambda x: aten.neg.default(x), torch.zeros(3, dtype=torch.int64))
    spec = InputSpec("page_table", torch.int64, (None,), "chunk", allowed=(0, 3))
    graph = translate("test", gm, [spec], ["y"], DIALECTS["standard"])
    assert graph.inputs[0].shape == graph.outputs[0].shape == (None,)


def test_dtypes_at_the_border_are_those_that_the_dialect_holds() -> None:
    bf16 = torch.ones(2, dtype=torch.bfloat16)
    dtypes = {
        dialect: translated(dialect, lambda x: aten.neg.default(x), bf16).inputs[0].dtype
        for dialect in DIALECTS
    }
    wide = translated("trt", lambda x: aten.cos.default(x), bf16.double())
    assert dtypes["standard"] == dtypes["trt"] == torch.bfloat16
    assert dtypes["portable"] == wide.inputs[0].dtype == torch.float32


def test_an_unknown_operator_is_named_with_its_node_and_module() -> None:
    gm, specs = traced(lambda x: aten.erfinv.default(x), torch.zeros(2))
    (node,) = (node for node in gm.graph.nodes if node.op == "call_function")
    node.meta["nn_module_stack"] = {"a": ("dit.blocks.0", "")}
    with pytest.raises(TargetError, match=r"aten\.erfinv\.default has no translation") as caught:
        translate("test", gm, specs, ["y"], DIALECTS["standard"])
    assert caught.value.where == "node erfinv_default   dit.blocks.0"
    assert caught.value.because and caught.value.fix


def test_nothing_of_the_contract_is_lost_when_names_collide() -> None:
    """A node may have the name of an output."""
    gm, specs = traced(lambda x: aten.neg.default(x), torch.zeros(2))
    spec = replace(specs[0], name="neg_default.Neg")
    graph = translate("test", gm, [spec], ["neg_default.Neg.1"], DIALECTS["standard"])
    names = [value.name for call in graph.calls for value in call.outputs]
    assert len({*names, spec.name}) == 3
    assert graph.outputs[0].name == "neg_default.Neg.1"
