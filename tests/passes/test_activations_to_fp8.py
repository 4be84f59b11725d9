from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.dialect import fp8_linear, norm_modulate, quantize_fp8, widen
from llvq.errors import MissError
from llvq.formats import nvfp4
from llvq.passes.activations_to_fp8 import activations_to_fp8
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_gelu_quantize import fuse_gelu_quantize
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.fuse_lowrank import fuse_lowrank
from llvq.passes.fuse_norm_quantize import fuse_norm_quantize
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.raise_norm_modulate import raise_norm_modulate

E = 32
QUANTIZED = (canonicalize, raise_norm_modulate, insert_quantize)
FUSED = (*QUANTIZED, fuse_norm_quantize, fuse_gelu_quantize, fuse_linear, fuse_lowrank)


class Layers(nn.Module):
    """All three ways to quantize: by a norm for two linears at once, by a GELU, and alone."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(E, 48), nn.Linear(E, 16)
        self.up, self.down = nn.Linear(E, 64, bias=False), nn.Linear(64, E)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        y = F.layer_norm(x, (E,), eps=1e-6) * (1 + scale) + shift
        return self.q(y), self.k(y), self.down(F.gelu(self.up(x), approximate="tanh"))


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(E, 16), nn.Linear(E, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.one(x), self.two(x).sin()


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, E, generator=generator)
    scale, shift = torch.randn(2, 2, 1, E, generator=generator)
    return tuple(t.to(dtype) for t in (x, scale, shift))


def in_fp8(x: Tensor, linear: nn.Linear) -> Tensor:
    """The linear on x in FP8, its weight rounded to NVFP4 and widened."""
    codes, scales, g = nvfp4.quantize(linear.weight.detach(), block_rule="four_over_six")
    w = widen.reference(codes, scales, g.reshape(1), [linear.out_features])
    return fp8_linear.reference(*quantize_fp8.reference(x), *w, linear.bias, x.dtype)


def test_rewrites(export, apply, golden, count):
    program = export(Layers(), *sample(3))
    (book,) = apply(program, *FUSED, activations_to_fp8)
    assert (book.rule, book.sites, book.hits) == ("fp8-linear", 3, 3)
    assert count(program, "llvq.nvfp4_linear") == 0 and count(program, "llvq.widen") == 3
    assert not any("scale" in n.kwargs for n in program.graph.graph.nodes)
    golden("activations_to_fp8", program)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 20])
def test_computes_what_its_parts_compute(tokens, dtype, export, apply, evaluate):
    module, inputs = Layers().to(dtype), sample(tokens, dtype)
    program = export(module, *inputs)
    (book,) = apply(program, *FUSED, activations_to_fp8)
    assert book.hits == 3
    found = evaluate(program, module, *inputs)
    x, scale, shift = inputs
    with torch.no_grad():
        y = norm_modulate.reference(x, scale, shift, 1e-6)
        inner = F.gelu(in_fp8(x, module.up), approximate="tanh")
        wanted = in_fp8(y, module.q), in_fp8(y, module.k), in_fp8(inner, module.down)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_is_nearer_to_the_module_than_nvfp4(export, apply, evaluate):
    module, inputs = Layers(), sample(64)
    program = export(module, *inputs)
    apply(program, *FUSED)
    before = evaluate(program, module, *inputs)
    apply(program, activations_to_fp8)
    after = evaluate(program, module, *inputs)
    for exact, nvfp4_out, fp8_out in zip(module(*inputs), before, after, strict=True):
        assert (fp8_out - exact).norm() < 0.95 * (nvfp4_out - exact).norm()


@pytest.mark.parametrize("alike", [True, False])
def test_static_scales_are_dropped_and_one_quantize_serves_all(
    alike, export, apply, facts_of, calibrate, count
):
    """Linears of one value whose static scales differ quantize it twice in NVFP4, once in FP8."""
    module, (x, *_) = Alone(), sample(3)
    known = calibrate(module, facts_of(module, {"one": "static", "two": "static"}, alike=alike))
    program = export(module, x)
    apply(program, *FUSED, calibration=known)
    assert count(program, "llvq.quantize") == (1 if alike else 2)
    (book,) = apply(program, activations_to_fp8)
    assert count(program, "llvq.quantize_fp8") == 1
    assert book.hits == count(program, "llvq.widen") == (1 if alike else 2)
    assert not [n for n in program.graph.graph.nodes if "activation_scale" in str(n.target)]


def test_smoothing_stays(export, apply, evaluate, facts_of, calibrate):
    module, inputs = Layers(), sample(5)
    facts = facts_of(module, {"down": "static smooth"})
    program = export(module, *inputs)
    apply(program, *FUSED, activations_to_fp8, calibration=calibrate(module, facts))
    gelu = next(n for n in program.graph.graph.nodes if "gelu_quantize_fp8" in str(n.target))
    assert gelu.kwargs["smooth"].target == "down.pre_quant_scale"
    evaluate(program, module, *inputs, facts=facts)


def test_a_branch_that_is_not_fused_stays(export, apply, evaluate, facts_of, calibrate, count):
    module, (x, *_) = Alone(), sample(5)
    facts = facts_of(module, {"one": "branch"})
    program = export(module, x)
    apply(program, *FUSED, activations_to_fp8, calibration=calibrate(module, facts))
    assert count(program, "llvq.lowrank_add") == 1
    down, up = facts["one.lora_down"], facts["one.lora_up"]
    # What the branch takes from the weight is not in its NVFP4 part.
    rest = nn.Linear(E, 16)
    rest.load_state_dict({"weight": module.one.weight - up @ down, "bias": module.one.bias})
    with torch.no_grad():
        wanted = in_fp8(x, rest) + F.linear(F.linear(x, down), up)
    found = evaluate(program, module, x, facts=facts)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_fused_branch_is_a_miss(export, apply, facts_of, calibrate):
    module, (x, *_) = Alone(), sample(3)
    known = calibrate(module, facts_of(module, {"one": "branch", "two": "branch"}))
    program = export(module, x)
    with pytest.raises(MissError) as caught:
        apply(program, *FUSED, activations_to_fp8, calibration=known)
    assert "a low-rank branch has no implementation outside of NVFP4 yet" in str(caught.value)


def test_parts_of_two_quantizes_are_a_miss(export, apply, facts_of, calibrate):
    module, (x, *_) = Alone(), sample(3)
    kinds = {"one": "static", "two": "static"}
    program = export(module, x)
    apply(program, *FUSED, calibration=calibrate(module, facts_of(module, kinds, alike=False)))
    one, two = (n for n in program.graph.graph.nodes if str(n.target) == "llvq.quantize.default")
    linear = [n for n in program.graph.graph.nodes if "nvfp4_linear" in str(n.target)][-1]
    part = next(user for user in one.users if user.args[1] == 1)
    linear.args = (linear.args[0], part, *linear.args[2:])
    with pytest.raises(MissError) as caught:
        apply(program, activations_to_fp8)
    assert f"'packed' is {two.name} in one place and {one.name} here" in str(caught.value)


def test_is_idempotent(export, apply):
    program = export(Layers(), *sample(3))
    apply(program, *FUSED, activations_to_fp8)
    before = program.text()
    (book,) = apply(program, activations_to_fp8)
    assert (book.sites, book.hits) == (0, 0) and program.text() == before
