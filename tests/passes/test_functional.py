"""Writes in place: the one idiom that becomes a value, its near misses, and the refusal.

As canonicalize uses it, with more of its spellings: tests/passes/test_canonicalize.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llvq.errors import SpecError
from llvq.passes.functional import interleaved_writes, refuse_mutation, writes_in_place
from llvq.passes.rules import Context
from llvq.program import Program, provenance
from llvq.recipe import BF16

Fill = Callable[[Tensor, Tensor, Tensor], None]


def both(out: Tensor, a: Tensor, b: Tensor) -> None:
    out[..., 0::2] = a
    out[..., 1::2] = b


def odd_first(out: Tensor, a: Tensor, b: Tensor) -> None:
    out[..., 1::2] = b
    out[..., 0::2] = a


def twice(out: Tensor, a: Tensor, b: Tensor) -> None:
    out[..., 0::2] = b
    both(out, a, b)


def halves(out: Tensor, a: Tensor, b: Tensor) -> None:
    out[..., :4] = a
    out[..., 4:] = b


def rows(out: Tensor, a: Tensor, b: Tensor) -> None:
    out[:, 0::2] = a.reshape(2, 1, 8)
    out[:, 1::2] = b.reshape(2, 1, 8)


def broadcast(out: Tensor, a: Tensor, b: Tensor) -> None:
    out[..., 0::2] = a
    out[..., 1::2] = b[:1, :1]


def from_itself(out: Tensor, a: Tensor, b: Tensor) -> None:
    out[..., 0::2] = a
    out[..., 1::2] = out[..., 0::2]


class Filled(nn.Module):
    def __init__(self, fill: Fill) -> None:
        super().__init__()
        self.fill = fill

    def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(x)
        self.fill(out, a, b)
        return out + 1


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 2, 4, generator=random) for _ in range(2))
    return torch.zeros(2, 2, 8, dtype=dtype), a, b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fill", [both, odd_first, broadcast])
def test_even_and_odd_elements_are_a_stack(fill, dtype, export, evaluate, count):
    """In either order, and rounded to the dtype of the buffer as a write does it."""
    module, inputs = Filled(fill), tensors(dtype)
    program = export(module, *inputs)
    book = interleaved_writes(program, Context(BF16))
    assert (book.sites, book.hits, book.balanced) == (1, 1, True)
    assert count(program, "aten.copy_") == 0 and count(program, "aten.empty_like") == 0
    refuse_mutation(program.graph.graph)
    found, expected = evaluate(program, module, *inputs)[0], module(*inputs)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("fill", [twice, halves, rows, from_itself])
def test_other_fills_are_left_alone_and_refused(fill, export):
    program = export(Filled(fill), *tensors())
    before = program.text()
    book = interleaved_writes(program, Context(BF16))
    assert book.sites == 0 and program.text() == before
    with pytest.raises(SpecError, match="the graph writes in place") as caught:
        refuse_mutation(program.graph.graph)
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == ["error[spec]:", "at", "because", "fix"]
    assert "test_functional.py" in lines[1] and "aten.copy_.default" in lines[2]


def test_what_is_built_says_where_it_comes_from(export):
    program = export(Filled(both), *tensors())
    interleaved_writes(program, Context(BF16))
    made = next(n for n in program.graph.graph.nodes if n.target is torch.ops.aten.stack.default)
    assert provenance(made)["rule"] == "interleaved-writes"
    assert any(name.startswith("copy_") for name in provenance(made)["from"])


def test_a_limit_leaves_the_writes_in_the_books(export):
    program = export(Filled(both), *tensors())
    book = interleaved_writes(program, Context(BF16, limit=0))
    assert (book.sites, book.hits, book.stopped, book.balanced) == (1, 0, 1, True)


class Changes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone().mul_(2).sin()


def test_only_a_schema_that_mutates_writes(export):
    program: Program = export(Changes(), torch.ones(3))
    writers = [n.name for n in program.graph.graph.nodes if writes_in_place(n)]
    assert len(writers) == 1 and writers[0].startswith("mul_")
