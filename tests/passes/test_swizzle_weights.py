from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq import graphs
from llvq.passes.activations_in_bf16 import activations_in_bf16
from llvq.passes.builder import Builder
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_gelu_quantize import fuse_gelu_quantize
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.fuse_lowrank import fuse_lowrank
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.swizzle_weights import swizzle_weights
from llvq.runtime.fold import attach_weights
from llvq.sources import DictSource
from llvq.weights import materialize

E = 32
FUSED = (canonicalize, insert_quantize, fuse_gelu_quantize, fuse_linear, fuse_lowrank)


class Layers(nn.Module):
    """Weights that are stacked, one without a bias, and one that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(E, 48), nn.Linear(E, 112)
        self.up, self.down = nn.Linear(E, 144, bias=False), nn.Linear(144, E)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.down(F.gelu(self.up(x), approximate="tanh"))
        return self.q(x), self.k(x), y, self.down(F.gelu(self.up(y), approximate="tanh"))


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(E, 16), nn.Linear(E, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.one(x), self.two(x).sin()


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, tokens, E, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def test_rewrites(export, apply, golden, count):
    program = export(Layers(), sample(3))
    apply(program, *FUSED)
    weights = len(
        {n.args[4].target for n in program.graph.graph.nodes if "nvfp4_linear" in str(n.target)}
    )
    (book,) = apply(program, swizzle_weights)
    assert (book.rule, book.sites, book.hits) == ("swizzled-linear", 5, 5)
    assert count(program, "llvq.nvfp4_linear") == 0
    assert count(program, "llvq.nvfp4_linear_swizzled") == 5
    assert count(program, "llvq.swizzle_scales") == weights == 3
    golden("swizzle_weights", program)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 20])
def test_keeps_the_numbers(tokens, dtype, export, apply, evaluate):
    module, x = Layers().to(dtype), sample(tokens, dtype)
    program = export(module, x)
    apply(program, *FUSED)
    before = evaluate(program, module, x)
    (book,) = apply(program, swizzle_weights)
    assert book.hits == book.sites > 0
    for old, new in zip(before, evaluate(program, module, x), strict=True):
        assert torch.equal(old, new)


def test_a_loader_swizzles_once_and_gives_linear_scales_back(export, apply, evaluate):
    module, x = Layers(), sample(3)
    program = export(module, x)
    apply(program, *FUSED)
    before, wanted = set(graphs.weights(program.graph)), evaluate(program, module, x)
    apply(program, swizzle_weights)
    assert set(graphs.weights(program.graph)) == before
    source, made = DictSource(module.state_dict()), dict[str, Tensor]()
    for record in program.weights.values():
        made |= materialize(record, source)
    graph = graphs.load(graphs.dump(program.graph), device="cpu")
    attach_weights({"chunk": graph}, made)
    held = graphs.weights(graph)
    assert not [name for name in held if name.endswith(".scales")]
    assert len([name for name in held if name.startswith("folded_")]) == 3
    assert not [n for n in graph.graph.nodes if "swizzle_scales" in str(n.target)]
    for found, old in zip(graph(x), wanted, strict=True):
        assert torch.equal(found, old)


def test_a_weight_that_is_computed_keeps_its_scales(export, apply, evaluate, count):
    module, x = Alone(), sample(3)
    program = export(module, x)
    apply(program, *FUSED)
    before = evaluate(program, module, x)
    linear = next(n for n in program.graph.graph.nodes if "nvfp4_linear" in str(n.target))
    b = Builder(program, "test", linear, ())
    same = b.call(torch.ops.aten.clone.default, linear.args[4])
    linear.args = (*linear.args[:4], same, *linear.args[5:])
    (book,) = apply(program, swizzle_weights)
    assert dict(book.excluded) == {"its weight is not loaded but computed": 1}
    assert book.hits == count(program, "llvq.swizzle_scales") == 0
    for old, new in zip(before, evaluate(program, module, x), strict=True):
        assert torch.equal(old, new)


def test_a_fused_branch_is_no_site(export, apply, facts_of, calibrate, count):
    module, x = Alone(), sample(3)
    known = calibrate(module, facts_of(module, {"one": "branch", "two": "branch"}))
    program = export(module, x)
    (book,) = apply(program, *FUSED, swizzle_weights, calibration=known)
    assert count(program, "llvq.nvfp4_linear_lowrank") == 1 and book.sites == 0


def test_activations_in_bf16_are_no_site(export, apply):
    program = export(Layers(), sample(3))
    (book,) = apply(program, *FUSED, activations_in_bf16, swizzle_weights)
    assert book.sites == 0


def test_is_idempotent(export, apply):
    program = export(Layers(), sample(3))
    apply(program, *FUSED, swizzle_weights)
    before = program.text()
    (book,) = apply(program, swizzle_weights)
    assert (book.sites, book.hits) == (0, 0) and program.text() == before
