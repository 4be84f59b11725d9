from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.errors import MissError
from llvq.formats import nvfp4
from llvq.passes.canonicalize import canonicalize
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.rules import Context
from llvq.recipe import LinearRecipe, Recipe

K = 32


class Mlp(nn.Module):
    """Two linears read one value, a third what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(K, 48), nn.Linear(K, 48, bias=False)
        self.down = nn.Linear(48, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Linear(24, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(x[..., :24])


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, K))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2)


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(K, K, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x.double())


NEAR = {
    Odd: "K = 24 of odd is not a multiple of 16",
    Computed: "its weight is computed by mul, not read from the checkpoint",
    Double: "its input is torch.float64",
}


def recipe(rule: str = "four_over_six", *exclude: str, **allow: str) -> Recipe:
    linear = LinearRecipe(weight_rule=rule, activation_rule=rule, exclude=exclude)
    return Recipe(linear=linear, allow_miss={"insert-quantize": allow} if allow else {})


def sample(tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, tokens, K, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def rounded(x: Tensor, rule: str) -> Tensor:
    return nvfp4.dequantize(*nvfp4.quantize(x.detach(), block_rule=rule), x.dtype)


def fake_quantized(mlp: Mlp, x: Tensor, rule: str) -> Tensor:
    """The same module, written by hand: every operand of a linear through the NVFP4 grid."""
    value = rounded(x, rule)
    gate = F.linear(value, rounded(mlp.gate.weight, rule), mlp.gate.bias)
    up = F.linear(value, rounded(mlp.up.weight, rule))
    inner = rounded(F.silu(gate) * up, rule)
    return F.linear(inner, rounded(mlp.down.weight, rule), mlp.down.bias)


def test_rewrites(export, apply, golden, count):
    program = export(Mlp(), sample(3))
    (book,) = apply(program, canonicalize, insert_quantize, recipe=recipe())
    assert (book.sites, book.hits) == (3, 3)
    assert count(program, "llvq.quantize") == 2  # One per value, not per linear.
    assert program.weights["down"].sources == ("down.weight",)
    golden("insert_quantize", program)


def test_excluded_linears_are_counted_by_their_glob(export, apply):
    program = export(Mlp(), sample(3))
    (book,) = apply(program, canonicalize, insert_quantize, recipe=recipe("max", "do*", "never.*"))
    assert (book.sites, book.hits) == (3, 2)
    assert book.to_dict()["excluded"] == {"do*": 1, "never.*": 0}  # A glob that fits nothing shows.


@pytest.mark.parametrize("module", NEAR)
def test_leaves_near_misses_alone(module, export, apply):
    program = export(module(), sample(3))
    with pytest.raises(MissError) as caught:
        apply(program, canonicalize, insert_quantize, recipe=recipe())
    assert NEAR[module] in str(caught.value)


def test_a_tolerated_miss_stays_as_it_is(export, apply, evaluate):
    module, x = Odd(), sample(3)
    program = export(module, x)
    (book,) = apply(program, canonicalize, insert_quantize, recipe=recipe(odd="K is 24"))
    assert book.tolerated == {"odd": 1} and book.balanced
    assert torch.equal(evaluate(program, module, x)[0], module(x))


@pytest.mark.parametrize("rule", nvfp4.BLOCK_RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 17])
def test_computes_what_fake_quantization_computes(tokens, dtype, rule, export, apply, evaluate):
    module, x = Mlp().to(dtype), sample(tokens, dtype)
    program = export(module, x)
    apply(program, canonicalize, insert_quantize, recipe=recipe(rule))
    assert torch.equal(evaluate(program, module, x)[0], fake_quantized(module, x, rule))


def test_agrees_with_modelopt_on_its_rule(export, apply, evaluate):
    """The max rule is NVIDIA's: modelopt's tensor quantizer is the oracle."""
    tensor_quant = pytest.importorskip("modelopt.torch.quantization.qtensor")
    module, x = nn.Linear(K, 48), sample(5)
    wrapper = nn.Sequential(module)
    program = export(wrapper, x)
    apply(program, canonicalize, insert_quantize, recipe=recipe("max"))

    def oracle(tensor: Tensor) -> Tensor:
        packed, scale, double_scale = tensor_quant.NVFP4QTensor.quantize(tensor, 16)
        return packed.dequantize(
            dtype=torch.float32, scale=scale, double_scale=double_scale, block_sizes={-1: 16}
        )

    wanted = F.linear(oracle(x), oracle(module.weight.detach()), module.bias)
    # The same codes and scales; their product is rounded in another order.
    torch.testing.assert_close(evaluate(program, wrapper, x)[0], wanted, rtol=1e-5, atol=1e-6)


def test_is_idempotent(export, apply):
    program = export(Mlp(), sample(3))
    apply(program, canonicalize, insert_quantize, recipe=recipe())
    (book,) = insert_quantize(program, Context(recipe()))
    assert (book.sites, book.hits) == (0, 0)
