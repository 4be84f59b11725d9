"""Small modules through one pass: export, rewrite, look at the text, run before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llvq import graphs
from llvq.calibration import Calibration, calibration_of
from llvq.capture import from_exported
from llvq.passes.books import Book, refuse_misses
from llvq.passes.rules import Context
from llvq.passes.spec import verify
from llvq.program import Program, weight_names
from llvq.recipe import NVFP4, Recipe
from llvq.sources import DictSource
from llvq.weights import materialize

Export = Callable[..., Program]
Apply = Callable[..., list[Book]]
Evaluate = Callable[..., tuple[Tensor, ...]]
Golden = Callable[[str, Program], None]
FactsOf = Callable[..., dict[str, Tensor]]
Calibrate = Callable[[nn.Module, Mapping[str, Tensor]], Calibration]

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def export() -> Export:
    """A module and its example tensors as a program at level `captured`."""

    def make(module: nn.Module, *inputs: Tensor, rates: Mapping[str, Any] | None = None) -> Program:
        exported = torch.export.export(module.eval(), inputs, strict=False)
        return from_exported(exported, rates=rates or {})

    return make


@pytest.fixture
def apply() -> Apply:
    """Run passes in order as the manager would; gives the books of the last one.

    Every recorded shape and dtype is compared with what the graph computes after every pass.
    """

    def run(
        program: Program,
        *passes: Any,
        recipe: Recipe = NVFP4,
        calibration: Calibration | None = None,
    ) -> list[Book]:
        books: list[Book] = []
        for function in passes:
            books = function(program, Context(recipe, calibration=calibration or {}))
            refuse_misses(function.__name__.replace("_", "-"), books, tolerable=True)
            verify(program)
        return books

    return run


@pytest.fixture
def evaluate() -> Evaluate:
    """Run the one graph of a program on real tensors, its weights made by the plan.

    `facts`: tensors that the checkpoint holds beside the module's own.
    """

    def run(
        program: Program,
        module: nn.Module,
        *inputs: Tensor,
        facts: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        source = DictSource({**state, **program.constants, **(facts or {})})
        made: dict[str, Tensor] = {}
        for record in program.weights.values():
            made |= materialize(record, source)
        graph = graphs.load(graphs.dump(program.graph), device="cpu")
        graphs.attach(graph, {name: made[name] for name in weight_names(graph)})
        with torch.no_grad():
            return graph(*inputs)

    return run


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a program with `golden/<name>.txt`. `pytest --accept` writes what is found instead:
    read the diff before you commit it."""

    def compare(name: str, program: Program) -> None:
        parts = [
            f"// {stage}\n{graphs.text(gm, provenance=False)}"
            for stage, gm in program.graphs.items()
        ]
        path, text = GOLDEN / f"{name}.txt", "".join(parts)
        if request.config.getoption("--accept"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"run pytest --accept for {path.name}"

    return compare


@pytest.fixture
def count() -> Callable[[Program, str], int]:
    """How often an op is called, by the name before its overload: `llvq.attention`."""

    def calls(program: Program, op: str) -> int:
        return sum(n for name, n in program.op_counts().items() if name.rsplit(".", 1)[0] == op)

    return calls


@pytest.fixture
def facts_of() -> FactsOf:
    """Facts about linears as a calibration would give them, by layer: some of `static`, `smooth`
    and `branch`. Layers that are `alike` read one value, and share scale and smoothing."""

    def make(
        module: nn.Module, kinds: Mapping[str, str], *, alike: bool = True, rank: int = 4
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, (layer, kind) in enumerate(kinds.items()):
            rows, columns = module.get_submodule(layer).weight.shape
            of_input = torch.Generator().manual_seed(columns if alike else columns + number)
            own = torch.Generator().manual_seed(number)
            smooth = torch.rand(columns, generator=of_input) * 1.8 + 0.1
            facts = {
                "static": {"input_scale": (smooth[0] + 3.0) / (6 * 448)},
                "smooth": {"pre_quant_scale": smooth},
                "branch": {
                    "lora_down": torch.randn(rank, columns, generator=own) * 0.2,
                    "lora_up": torch.randn(rows, rank, generator=own) * 0.2,
                },
            }
            for part in kind.split():
                found |= {f"{layer}.{name}": tensor for name, tensor in facts[part].items()}
        return found

    return make


@pytest.fixture
def calibrate() -> Calibrate:
    """What a checkpoint of the module with these facts beside it says."""

    def make(module: nn.Module, facts: Mapping[str, Tensor]) -> Calibration:
        return calibration_of(DictSource({**module.state_dict(), **facts}))

    return make
