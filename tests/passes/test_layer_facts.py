"""Calibrated linears against a composition in plain PyTorch with modelopt's fake quantization."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.calibration import LayerFacts
from llvq.errors import CheckpointError
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.fuse_lowrank import fuse_lowrank
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.layer_facts import is_smoothing, readers
from llvq.program import Program
from llvq.recipe import LinearRecipe, Recipe

K = 32
BEFORE = (canonicalize, insert_quantize)
MAX = Recipe(linear=LinearRecipe("max", "max", exclude=()))
KINDS = ["static", "smooth", "branch", "static smooth", "static smooth branch"]


class Projections(nn.Module):
    """Three linears of one value, and one of what the first makes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(K, 48), nn.Linear(K, 16, bias=False), nn.Linear(K, 16)
        self.o = nn.Linear(48, K)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q = self.q(x)
        return q, self.k(x), self.v(x), self.o(F.silu(q))


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, tokens, K, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def fake_quantized(x: Tensor, scale: Tensor | None) -> Tensor:
    """modelopt's NVFP4, quantized and dequantized; with a static scale where there is one."""
    oracle = pytest.importorskip("modelopt.torch.quantization.qtensor").NVFP4QTensor
    packed, scales, g = oracle.quantize(x.float(), 16, weights_scaling_factor_2=scale)
    wide = packed.dequantize(torch.float32, scale=scales, double_scale=g, block_sizes={-1: 16})
    return wide.to(x.dtype)


def eager(linear: nn.Linear, x: Tensor, facts: dict[str, Tensor], layer: str) -> Tensor:
    """What modelopt's SVDQuantLinear computes, with the residual taken in fp32."""
    get = {name: facts.get(f"{layer}.{name}") for name in ("input_scale", "pre_quant_scale")}
    weight = linear.weight.detach().float()
    if get["pre_quant_scale"] is not None:
        smooth = get["pre_quant_scale"].to(x.dtype)
        x, weight = x * smooth, weight / smooth.float()
    branch = 0.0
    if f"{layer}.lora_down" in facts:
        down, up = (facts[f"{layer}.lora_{half}"].to(x.dtype) for half in ("down", "up"))
        weight = weight - up.float() @ down.float()
        branch = F.linear(F.linear(x, down), up)
    value = fake_quantized(x, get["input_scale"])
    return F.linear(value, fake_quantized(weight, None).to(x.dtype), linear.bias) + branch


def eager_outputs(
    module: Projections, x: Tensor, q: Tensor, facts: dict[str, Tensor]
) -> list[Tensor]:
    """All four outputs. `q` is what o reads: an ulp there moves a code now and then, and a row."""
    values = {"q": x, "k": x, "v": x, "o": F.silu(q)}
    return [eager(getattr(module, name), value, facts, name) for name, value in values.items()]


@pytest.fixture
def compiled(export, apply, facts_of, calibrate):
    def make(module: nn.Module, x: Tensor, kinds: dict[str, str], *passes, recipe=MAX, **options):
        facts = facts_of(module, kinds, **options)
        calibration = calibrate(module, facts)
        program = export(module, x)
        apply(program, *BEFORE, *passes, recipe=recipe, calibration=calibration)
        return program, facts

    return make


def all_layers(kind: str) -> dict[str, str]:
    return dict.fromkeys("qkvo", kind)


def test_rewrites(compiled, golden):
    program, _ = compiled(Projections(), sample(3), all_layers("static smooth branch"))
    golden("layer_facts", program)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [(), (fuse_linear, fuse_lowrank)], ids=["quantized", "fused"])
@pytest.mark.parametrize("tokens", [3, 17])
def test_computes_what_modelopt_computes(kind, fused, tokens, compiled, evaluate):
    module, x = Projections(), sample(tokens)
    program, facts = compiled(module, x, all_layers(kind), *fused)
    found = evaluate(program, module, x, facts=facts)
    # The same codes and scales; their product is rounded in another order.
    for a, b in zip(found, eager_outputs(module, x, found[0], facts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [3, 17])
def test_bf16_computes_what_modelopt_computes(tokens, compiled, evaluate):
    module, x = Projections().bfloat16(), sample(tokens, torch.bfloat16)
    program, facts = compiled(module, x, all_layers("static smooth branch"), fuse_linear)
    found = evaluate(program, module, x, facts=facts)
    for a, b in zip(found, eager_outputs(module, x, found[0], facts), strict=True):
        torch.testing.assert_close(a, b)


def test_siblings_with_equal_facts_share_smoothing_and_quantize(compiled, count):
    program, _ = compiled(Projections(), sample(3), all_layers("static smooth"))
    assert count(program, "llvq.quantize") == count(program, "aten.mul") == 2
    apart, _ = compiled(Projections(), sample(3), all_layers("static smooth"), alike=False)
    assert count(apart, "llvq.quantize") == count(apart, "aten.mul") == 4


def test_siblings_with_other_scales_share_the_smoothing(compiled, count):
    kinds = {"q": "static smooth", "k": "smooth"}
    program, _ = compiled(Projections(), sample(3), kinds)
    assert count(program, "aten.mul") == 1 and count(program, "llvq.quantize") == 4


def test_a_layer_without_facts_is_dynamic_and_plain(compiled):
    program, _ = compiled(Projections(), sample(3), {"q": "static smooth"})
    calls = [n for n in program.graph.graph.nodes if n.target is torch.ops.llvq.quantize.default]
    assert [bool(node.kwargs) for node in calls] == [True, False, False]
    assert program.weights["q"].facts[0].pre_quant_scale == "q.pre_quant_scale"
    assert program.weights["k"].facts == ()


@pytest.mark.parametrize(
    ("rule", "factor"), [("max", 1), ("mse_sweep", 1), ("four_over_six", 1.75)]
)
def test_a_static_scale_of_the_true_maximum_is_the_dynamic_one(
    rule, factor, export, apply, evaluate, calibrate
):
    """amax/(6*448) is what calibration gives, whatever the rule that activations are rounded by."""
    module, x = nn.Sequential(nn.Linear(K, 48)), sample(5)
    recipe = Recipe(linear=LinearRecipe("max", rule, exclude=()))
    facts = {"0.input_scale": x.abs().amax() / (6 * 448)}
    program, dynamic = export(module, x), export(module, x)
    apply(program, *BEFORE, recipe=recipe, calibration=calibrate(module, facts))
    apply(dynamic, *BEFORE, recipe=recipe)
    record = program.weights["0.activation_scale"]
    assert (record.op, record.sources, record.factor) == ("scale", ("0.input_scale",), factor)
    found, wanted = evaluate(program, module, x, facts=facts), evaluate(dynamic, module, x)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)


def packed(facts: LayerFacts) -> LayerFacts:
    return LayerFacts(**{**vars(facts), "packed": True})


@pytest.mark.parametrize("exclude", [("q",), ("*",)])
@pytest.mark.parametrize("kind", ["smooth", "branch", "smooth branch"])
def test_an_excluded_residual_gets_back_what_was_taken_out(
    kind, exclude, export, apply, evaluate, facts_of, calibrate
):
    """The stored weight of q is W / s - up @ down: q is the linear of W all the same."""
    module, x = Projections(), sample(7)
    wanted = module(x)[0]
    facts = facts_of(module, {"q": kind})
    calibration = {layer: packed(known) for layer, known in calibrate(module, facts).items()}
    program = export(module, x)
    recipe = Recipe(linear=LinearRecipe("max", "max", exclude=exclude))
    (book,) = apply(program, *BEFORE, recipe=recipe, calibration=calibration)
    assert book.excluded[exclude[0]] == (1 if exclude == ("q",) else 4)
    with torch.no_grad():
        if "smooth" in kind:
            module.q.weight /= facts["q.pre_quant_scale"]
        if "branch" in kind:
            module.q.weight -= facts["q.lora_up"] @ facts["q.lora_down"]
    torch.testing.assert_close(evaluate(program, module, x, facts=facts)[0], wanted)
    before = program.text()
    (book,) = apply(program, insert_quantize, recipe=recipe, calibration=calibration)
    assert program.text() == before and book.hits == 0


def test_an_excluded_weight_that_is_whole_ignores_its_facts(compiled, count):
    recipe = Recipe(linear=LinearRecipe("max", "max", exclude=("q",)))
    kinds = {"q": "static smooth branch"}
    program, _ = compiled(Projections(), sample(3), kinds, recipe=recipe)
    assert count(program, "aten.mul") == count(program, "llvq.lowrank_add") == 0


def test_a_residual_that_no_linear_reads_is_refused(export, apply):
    program = export(Projections(), sample(3))
    known = {"text.q": LayerFacts(pre_quant_scale="text.q.pre_quant_scale", packed=True)}
    with pytest.raises(CheckpointError, match=r"text\.q cannot be read without its smoothing"):
        apply(program, *BEFORE, recipe=MAX, calibration=known)


def test_is_idempotent(compiled, apply, calibrate):
    module = Projections()
    program, facts = compiled(module, sample(3), all_layers("static smooth branch"))
    before = program.text()
    calibration = calibrate(module, facts)
    (book,) = apply(program, insert_quantize, recipe=MAX, calibration=calibration)
    assert (book.sites, book.hits) == (0, 0) and program.text() == before


def test_readers_are_those_of_the_smoothed_value_too(compiled):
    program, _ = compiled(Projections(), sample(3), {"q": "smooth", "k": "smooth"})
    (x,) = inputs(program)
    (smoothing,) = (user for user in x.users if is_smoothing(user))
    assert not is_smoothing(x) and not is_smoothing(None)
    reads = readers(x)
    assert len(reads) == 2 and smoothing not in reads  # two quantizes: smoothed for q, k; plain v


def inputs(program: Program) -> list[torch.fx.Node]:
    return [node for node in program.graph.graph.nodes if node.op == "placeholder"]
