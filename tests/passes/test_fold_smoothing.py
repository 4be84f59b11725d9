from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.compiler import stages_of
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fold_smoothing import fold_smoothing
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.raise_norm_modulate import raise_norm_modulate
from llvq.passes.split_stages import split_stages
from llvq.recipe import NVFP4, LinearRecipe, Recipe

E = 32
BEFORE = (canonicalize, raise_norm_modulate, insert_quantize)
KEEP_V = Recipe(linear=LinearRecipe(exclude=("v",)))
ALLOW_NORM = Recipe(allow_miss={"raise-norm-modulate": {"*": "it is not modulated"}})


class Modulated(nn.Module):
    """Three linears behind one modulated norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(E, n) for n in (48, 16, 16))

    def normed(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (E,), eps=1e-6).to(x.dtype) * (1 + scale) + shift

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        y = self.normed(x, scale, shift)
        return self.q(y), self.k(y), self.v(y)


class InFp32(Modulated):
    """The spelling of diffusers: modulation in fp32, rounded once."""

    def normed(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), (E,), eps=1e-6)
        return (y * (1 + scale.float()) + shift.float()).to(x.dtype)


class Affine(Modulated):
    """The norm before cross-attention: a weight and a bias of its own."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(E, eps=1e-6, bias=bias)
        with torch.no_grad():
            for parameter in self.norm.parameters():
                parameter.copy_(torch.rand(E, generator=torch.Generator().manual_seed(5)) + 0.3)

    def normed(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.norm(x)


class Cast(Affine):
    """The same with statistics, weight and bias in fp32, whatever the model is in."""

    def normed(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


class Plain(Affine):
    def normed(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, (E,))


class Computed(Affine):
    def normed(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, (E,), self.norm.weight * 2, self.norm.bias)


class Gelu(Modulated):
    def normed(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.gelu(x)


class Input(Modulated):
    def normed(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return x


class Twice(Affine):
    """One norm, called on two values that are smoothed with other scales."""

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        return self.q(self.norm(x)), self.k(self.norm(x + 1))


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((1, tokens, E), (1, 1, E), (1, 1, E))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def kinds(kind: str, layers: str = "qkv") -> dict[str, str]:
    return dict.fromkeys(layers, kind)


@pytest.fixture
def prepared(export, apply, facts_of, calibrate):
    """A program whose linears have facts, before the pass; the facts with it."""

    def make(module, inputs, facts="static smooth", layers="qkv", recipe=NVFP4, **options):
        tensors = facts_of(module, kinds(facts, layers), **options)
        program = export(module, *inputs, rates={"scale": "step", "shift": "step"})
        apply(program, *BEFORE, recipe=recipe, calibration=calibrate(module, tensors))
        return program, tensors

    return make


def test_rewrites(prepared, apply, golden):
    program, _ = prepared(Modulated().bfloat16(), sample(3, torch.bfloat16))
    into_modulation, into_affine = apply(program, fold_smoothing)
    assert (into_modulation.sites, into_modulation.hits, into_affine.sites) == (1, 1, 0)
    golden("fold_smoothing_modulation", program)


def test_rewrites_an_affine_norm(prepared, apply, golden):
    program, _ = prepared(Affine(), sample(3))
    into_modulation, into_affine = apply(program, fold_smoothing)
    assert (into_modulation.sites, into_affine.sites, into_affine.hits) == (0, 1, 1)
    record = program.weights["norm.weight_smoothed"]
    assert (record.op, record.sources) == ("multiply", ("norm.weight", "k.pre_quant_scale"))
    golden("fold_smoothing_affine", program)


def test_the_vectors_are_computed_once_per_timestep(prepared, apply):
    program, _ = prepared(Modulated(), sample(3))
    apply(program, fold_smoothing, split_stages)
    stages = stages_of(program)
    assert list(stages) == ["modulate", "denoise"]
    counts = {name: _products(stage.graph) for name, stage in stages.items()}
    assert counts == {"modulate": 2, "denoise": 0}


def _products(gm: torch.fx.GraphModule) -> int:
    return sum(node.target is torch.ops.aten.mul.Tensor for node in gm.graph.nodes)


NEAR = {
    "other scales": (Modulated(), {"alike": False}, "its norm is read with other scales too", 3),
    "excluded": (Modulated(), {"recipe": KEEP_V}, "its norm is read without it too", 1),
    "not smoothed": (Affine(), {"layers": "qk"}, "its norm is read without it too", 1),
    "gelu": (Gelu(), {}, "its value is made by aten.gelu.default, which is no norm", 1),
    "input": (Input(), {}, "its value is made by placeholder, which is no norm", 1),
    "no weight": (Plain(), {"recipe": ALLOW_NORM}, "its norm has no weight", 1),
    "computed": (Computed(), {}, "the weight of its norm is computed", 1),
}


@pytest.mark.parametrize("near", NEAR)
def test_leaves_near_misses_alone(near, prepared, apply):
    module, options, reason, sites = NEAR[near]
    program, _ = prepared(module, sample(3), **options)
    before = program.text()
    books = apply(program, fold_smoothing)
    assert {r: n for book in books for r, n in book.excluded.items()} == {reason: sites}
    assert not any(book.hits for book in books) and program.text() == before


def test_a_norm_without_smoothing_is_no_site(prepared, apply):
    program, _ = prepared(Modulated(), sample(3), facts="static branch")
    assert [book.sites for book in apply(program, fold_smoothing)] == [0, 0]


MODULES = [Modulated(), InFp32(), Affine(), Affine(bias=False), Cast(), Twice()]
NAMES = ["modulated", "in fp32", "affine", "no bias", "cast", "twice"]


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("module", MODULES, ids=NAMES)
def test_keeps_the_numbers(module, tokens, prepared, apply, evaluate):
    """What is quantized is what it was; a code on a midpoint may then go the other way."""
    inputs = sample(tokens)
    layers = "qk" if isinstance(module, Twice) else "qkv"
    alike = not isinstance(module, Twice)
    program, facts = prepared(module, inputs, layers=layers, alike=alike)
    before = smoothed(program, module, inputs, facts, evaluate)
    books = apply(program, fold_smoothing)
    assert sum(book.hits for book in books) == (2 if isinstance(module, Twice) else 1)
    after = smoothed(program, module, inputs, facts, evaluate)
    for found, wanted in zip(after, before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("module", [Modulated(), InFp32(), Affine()])
def test_a_small_scale_keeps_its_digits_in_bf16(module, tokens, prepared, apply, evaluate):
    """Against fp64: folding is about as near as the product, also where s is below 2**-8."""
    module, inputs = module.bfloat16(), sample(tokens, torch.bfloat16)
    program, facts = prepared(module, inputs)
    facts["k.pre_quant_scale"] = facts["k.pre_quant_scale"] * 2**-8
    twin = copy.deepcopy(module).double()
    wanted = twin.normed(*(t.double() for t in inputs))
    wanted = wanted * facts["k.pre_quant_scale"].bfloat16().double()
    apart = (smoothed(program, module, inputs, facts, evaluate)[0].double() - wanted).norm()
    apply(program, fold_smoothing)
    folded = (smoothed(program, module, inputs, facts, evaluate)[0].double() - wanted).norm()
    assert folded < 1.1 * apart and folded < 0.01 * wanted.norm()


def smoothed(program, module, inputs, facts, evaluate) -> tuple[Tensor, ...]:
    """The values that are quantized."""
    twin = program.copy()
    graph = twin.graph.graph
    calls = [node for node in graph.nodes if node.target is torch.ops.llvq.quantize.default]
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (tuple(node.args[0] for node in calls),)
    twin.graph.recompile()
    return evaluate(twin, module, *inputs, facts=facts)


def test_is_idempotent(prepared, apply):
    for module in (Modulated(), Affine()):
        program, _ = prepared(module, sample(3))
        apply(program, fold_smoothing)
        before = program.text()
        assert [book.sites for book in apply(program, fold_smoothing)] == [0, 0]
        assert program.text() == before
