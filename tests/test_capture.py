"""Capture: what was asked for is obtained, or an error says what to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llvq.capture import capture, from_exported
from llvq.errors import CaptureError, RecipeError
from llvq.program import Level, Program, val


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 4)
        self.register_buffer("gain", torch.full((4,), 2.0), persistent=False)

    def forward(self, x: Tensor, history: list[Tensor]) -> dict[str, Any]:
        y = self.proj(x) * self.gain
        return {"y": y, "sums": [y + h for h in history]}


class HostSync(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x * x.sum().item() if x.sum().item() > 0 else x}


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def captured(**inputs: Any) -> Program:
    return capture(Model(), inputs, rates={"x": "call", "history": "chunk"})


@pytest.fixture(scope="module")
def small() -> Program:
    return captured(x=torch.ones(3, 8), history=[torch.ones(3, 4), torch.zeros(1, 4)])


def test_inputs_and_outputs_have_dotted_names(small: Program) -> None:
    named = [(spec.name, spec.shape, spec.rate) for spec in small.inputs]
    assert named == [
        ("x", (3, 8), "call"),
        ("history.0", (3, 4), "chunk"),
        ("history.1", (1, 4), "chunk"),
    ]
    assert small.outputs == ("y", "sums.0", "sums.1") and small.level == Level.CAPTURED


def test_every_value_is_on_meta_and_weights_are_copied_by_name(small: Program) -> None:
    values = [val(node) for node in small.graph.graph.nodes if node.op != "output"]
    assert all(value.device.type == "meta" for value in values)
    assert {"proj.weight", "proj.bias"} <= set(small.weights)
    record = small.weights["proj.weight"]
    assert (record.op, record.sources, record.dtype) == ("copy", ("proj.weight",), torch.float32)


def test_buffers_outside_the_state_dict_keep_their_values(small: Program) -> None:
    assert set(small.constants) == {"gain"}
    assert torch.equal(small.constants["gain"], torch.full((4,), 2.0))


def test_nodes_know_module_and_source(small: Program) -> None:
    linear = next(n for n in small.graph.graph.nodes if "linear" in str(n.target))
    assert "proj" in [path for path, _ in linear.meta["nn_module_stack"].values()]
    assert "test_capture.py" in linear.meta["stack_trace"]


def test_inputs_that_alias_stay_apart() -> None:
    shared = torch.ones(3, 4)
    program = captured(x=torch.ones(3, 8), history=[shared, shared, shared[:1]])
    assert [spec.shape for spec in program.inputs[1:]] == [(3, 4), (3, 4), (1, 4)]
    inputs = [node for node in program.graph.graph.nodes if node.op == "placeholder"]
    assert len(inputs) == 4 and all(node.users for node in inputs)


def test_a_host_sync_is_an_error_of_four_lines() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(HostSync(), {"x": torch.ones(3)}, rates={"x": "call"})
    lines = str(caught.value).splitlines()
    assert lines[0] == "error[capture]: torch.export could not capture HostSync"
    assert [line.split()[0] for line in lines[1:]] == ["at", "because", "fix"]
    assert "test_capture.py:" in lines[1]


def test_an_input_without_a_rate() -> None:
    with pytest.raises(CaptureError, match=r"input 'history\.0' has no rate") as caught:
        capture(
            Model(), {"x": torch.ones(3, 8), "history": [torch.ones(3, 4)]}, rates={"x": "call"}
        )
    assert "prompt, step, chunk, call, emit" in str(caught.value)


def exported(module: nn.Module, *inputs: Any, **kwargs: Any) -> torch.export.ExportedProgram:
    return torch.export.export(module, inputs, **kwargs)


def test_somebody_elses_export_is_a_program() -> None:
    program = from_exported(exported(Add(), torch.ones(2), torch.ones(2)), rates={"y": "prompt"})
    assert [(spec.name, spec.rate) for spec in program.inputs] == [("x", "call"), ("y", "prompt")]
    assert program.outputs == ("output.0",)
    assert torch.equal(program.graph(torch.ones(2), torch.ones(2))[0], torch.full((2,), 2.0))


def test_dynamic_shapes_are_refused() -> None:
    dim = torch.export.Dim("n", min=2, max=64)
    dynamic = exported(
        Add(), torch.ones(4), torch.ones(4), dynamic_shapes={"x": {0: dim}, "y": {0: dim}}
    )
    with pytest.raises(CaptureError, match="input x has dynamic shape") as caught:
        from_exported(dynamic, rates={})
    assert "one static shape per bucket" in str(caught.value)


def test_a_number_that_is_compiled_in_is_no_input() -> None:
    module: Callable[..., Any] = Add()
    program = from_exported(exported(module, torch.ones(2), 3), rates={})
    assert [spec.name for spec in program.inputs] == ["x"]


def test_a_rate_for_no_input_is_refused() -> None:
    with pytest.raises(RecipeError, match="no input 'z'"):
        from_exported(exported(Add(), torch.ones(2), torch.ones(2)), rates={"z": "call"})
