from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llvq.backends.base import Target
from llvq.errors import TargetError
from llvq.passes.canonicalize import canonicalize
from llvq.passes.lower import lower
from llvq.passes.raise_attention import raise_attention
from llvq.passes.spec import verify
from llvq.program import Level, Program, provenance


class Attend(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.fixture
def program(export, apply) -> Program:
    made = export(Attend(), torch.randn(1, 2, 6, 16))
    apply(made, canonicalize, raise_attention)
    return made


def implementations(program: Program) -> list[object]:
    found = (provenance(node).get("impl") for node in program.graph.graph.nodes)
    return [impl for impl in found if impl is not None]


def test_rewrites(program, golden):
    """Only a note at every llvq op: the graph is the same."""
    digest = program.text().replace(" impl=reference", "")
    target = Target("test", "cpu", "w4a4-emulated", {"attention": "reference"})
    book = lower(program.graphs, target)
    assert (book.sites, book.hits) == (1, 1)
    assert implementations(program) == ["reference"]
    assert program.text().replace(" impl=reference", "") == digest
    program.level = Level.LOWERED
    verify(program)
    golden("lower", program)


def test_refuses_what_the_target_cannot_run(program):
    target = Target("toy", "cpu", "w4a4-emulated", {"rope": "reference"})
    with pytest.raises(TargetError, match=r"toy cannot run llvq\.attention") as caught:
        lower(program.graphs, target)
    assert "toy has no implementation of llvq.attention" in str(caught.value)
    assert implementations(program) == []


@pytest.mark.parametrize("tokens", [6, 9])
def test_keeps_the_numbers(tokens, export, apply, evaluate):
    x = torch.randn(1, 2, tokens, 16, generator=torch.Generator().manual_seed(tokens))
    program = export(Attend(), x)
    apply(program, canonicalize, raise_attention)
    before = evaluate(program, Attend(), x)[0]
    lower(program.graphs, Target("test", "cpu", "", {"attention": "reference"}))
    assert torch.equal(evaluate(program, Attend(), x)[0], before)


def test_the_last_target_wins(program):
    target = Target("test", "cpu", "", {"attention": "one"})
    lower(program.graphs, target)
    lower(program.graphs, replace(target, implementations={"attention": "two"}))
    assert implementations(program) == ["two"]
