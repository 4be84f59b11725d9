from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.errors import SpecError
from llvq.passes.builder import Builder
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_gate_residual import fuse_gate_residual
from llvq.passes.fuse_gelu_quantize import fuse_gelu_quantize
from llvq.passes.fuse_gemm_epilogues import fuse_gemm_epilogues
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.fuse_lowrank import fuse_lowrank
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.spec import verify_graph
from llvq.passes.swizzle_weights import swizzle_weights
from llvq.program import Level
from llvq.recipe import LinearRecipe, Recipe

E = 32
BEFORE = (
    canonicalize,
    insert_quantize,
    fuse_gelu_quantize,
    fuse_gate_residual,
    fuse_linear,
    fuse_lowrank,
    swizzle_weights,
)
SWEEP = Recipe(linear=LinearRecipe(activation_rule="mse_sweep"))


class Mlp(nn.Module):
    """A feed-forward network and its gated residual; what it reads twice, it may leak."""

    def __init__(self, approximate: str = "tanh", leak: str = "") -> None:
        super().__init__()
        self.approximate, self.leak = approximate, leak
        self.up, self.down = nn.Linear(E, 48, bias=False), nn.Linear(48, E)

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
        inner = self.up(x)
        y = self.down(F.gelu(inner, approximate=self.approximate))
        gated = y.unflatten(1, (gate.shape[1], -1)) * gate.unsqueeze(2)
        leaks = {"": (), "up": (inner.sin(),), "down": (y.sin(),)}[self.leak]
        return x + gated.flatten(1, 2), *leaks


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, E, generator=generator)
    return x.to(dtype), torch.randn(2, 3, E, generator=generator).to(dtype)


def entries(books):
    return {book.rule: (book.sites, book.hits, dict(book.excluded)) for book in books}


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_rewrites(kind, export, apply, golden, count, facts_of, calibrate):
    module = Mlp()
    known = (
        calibrate(module, facts_of(module, {"down": "static smooth"})) if kind == "static" else {}
    )
    program = export(module, *sample(6))
    books = apply(program, *BEFORE, fuse_gemm_epilogues, calibration=known)
    assert entries(books) == {
        "linear-gelu-quantize": (kind == "static", kind == "static", {}),
        "linear-gelu": (kind == "dynamic", kind == "dynamic", {}),
        "linear-gate-residual": (1, 1, {}),
    }
    assert count(program, "llvq.nvfp4_linear_swizzled") == count(program, "llvq.gelu_quantize") == 0
    golden(f"fuse_gemm_epilogues_{kind}", program)


@pytest.mark.parametrize("kind", ["", "static", "smooth", "static smooth"])
@pytest.mark.parametrize(
    ("tokens", "approximate", "dtype"), [(3, "tanh", torch.bfloat16), (9, "none", torch.float32)]
)
def test_keeps_the_numbers(
    kind, tokens, approximate, dtype, export, apply, evaluate, facts_of, calibrate
):
    module, given = Mlp(approximate).to(dtype), sample(tokens, dtype)
    facts = facts_of(module, {"down": kind})
    program = export(module, *given)
    apply(program, *BEFORE, calibration=calibrate(module, facts))
    before = evaluate(program, module, *given, facts=facts)
    books = apply(program, fuse_gemm_epilogues)
    assert sum(book.hits for book in books) == 2
    (found,) = evaluate(program, module, *given, facts=facts)
    assert torch.equal(found, before[0])


@pytest.mark.parametrize(
    ("leak", "rule"), [("up", "linear-gelu"), ("down", "linear-gate-residual")]
)
def test_a_linear_that_others_read_stays(leak, rule, export, apply, evaluate):
    module, given = Mlp(leak=leak), sample(6)
    program = export(module, *given)
    apply(program, *BEFORE)
    before = evaluate(program, module, *given)
    books = entries(apply(program, fuse_gemm_epilogues))
    assert books[rule] == (1, 0, {"its linear is read by others too": 1})
    assert sum(hits for _, hits, _ in books.values()) == 1
    for old, new in zip(before, evaluate(program, module, *given), strict=True):
        assert torch.equal(old, new)


def test_a_branch_is_added_before_what_follows(export, apply, facts_of, calibrate):
    module = Mlp()
    known = calibrate(module, facts_of(module, {"up": "branch", "down": "branch"}))
    program = export(module, *sample(6))
    books = entries(apply(program, *BEFORE, fuse_gemm_epilogues, calibration=known))
    reason = {"a low-rank branch is added to its linear first": 1}
    assert books["linear-gate-residual"] == (1, 0, reason)


def test_a_sweep_of_scales_is_no_epilogue(export, apply, facts_of, calibrate):
    module = Mlp()
    program = export(module, *sample(6))
    known = calibrate(module, facts_of(module, {"down": "static"}))
    apply(program, *BEFORE, recipe=SWEEP, calibration=known)
    books = entries(apply(program, fuse_gemm_epilogues))
    reason = {"mse_sweep is too long for an epilogue": 1}
    assert books["linear-gelu-quantize"] == (1, 0, reason)
    assert books["linear-gate-residual"][1] == 1


def test_a_sweep_follows_a_dynamic_scale(export, apply, evaluate):
    module, given = Mlp(), sample(6)
    program = export(module, *given)
    apply(program, *BEFORE, recipe=SWEEP)
    before = evaluate(program, module, *given)
    books = entries(apply(program, fuse_gemm_epilogues))
    assert books["linear-gelu"] == (1, 1, {})
    assert torch.equal(evaluate(program, module, *given)[0], before[0])


def test_a_weight_that_is_computed_stays(export, apply):
    program = export(Mlp(), *sample(6))
    apply(program, *BEFORE[:-1])
    for linear in [n for n in program.graph.graph.nodes if "nvfp4_linear" in str(n.target)]:
        same = Builder(program, "test", linear, ()).call(
            torch.ops.aten.clone.default, linear.args[4]
        )
        linear.args = (*linear.args[:4], same, *linear.args[5:])
    books = entries(apply(program, swizzle_weights, fuse_gemm_epilogues))
    reason = {"the weight of its linear is not loaded but computed": 1}
    assert books["linear-gelu"] == books["linear-gate-residual"] == (1, 0, reason)


def test_a_scale_comes_with_its_value_or_is_a_weight(export, apply):
    """Another value may not be quantized by it."""
    program = export(Mlp(), *sample(6))
    apply(program, *BEFORE, fuse_gemm_epilogues)
    nodes = program.graph.graph.nodes
    quantize = next(n for n in nodes if str(n.target) == "llvq.quantize.default" and n.kwargs)
    verify_graph("chunk", program.graph, Level.STAGED)
    b = Builder(program, "test", quantize, ())
    other = b.call(torch.ops.aten.sin.default, quantize.args[0])
    quantize.args = (other, *quantize.args[1:])
    with pytest.raises(SpecError) as caught:
        verify_graph("chunk", program.graph, Level.STAGED)
    assert "is no fp32 weight of one number" in str(caught.value)


def test_is_idempotent(export, apply):
    program = export(Mlp(), *sample(6))
    apply(program, *BEFORE, fuse_gemm_epilogues)
    before = program.text()
    books = apply(program, fuse_gemm_epilogues)
    assert [(book.sites, book.hits) for book in books] == [(0, 0)] * 3
    assert program.text() == before
