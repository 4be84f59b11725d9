"""Small modules through one pass: export, rewrite, look at the text, run before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llvq import graphs
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

    def run(program: Program, *passes: Any, recipe: Recipe = NVFP4) -> list[Book]:
        books: list[Book] = []
        for function in passes:
            books = function(program, Context(recipe))
            refuse_misses(function.__name__.replace("_", "-"), books, tolerable=True)
            verify(program)
        return books

    return run


@pytest.fixture
def evaluate() -> Evaluate:
    """Run the one graph of a program on real tensors, its weights made by the plan."""

    def run(program: Program, module: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        source = DictSource({**state, **program.constants})
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
