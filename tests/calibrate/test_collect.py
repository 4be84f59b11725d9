"""Facts composed in plain words give what ModelOpt's own quantized linears give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.calibrate.collect import collect
from llvq.calibrate.configs import CONFIGS
from llvq.calibrate.modelopt_backend import backend, calibrate, fake_quantize, quantizers

LAYERS = tuple(f"self_attn.{name}" for name in "qkvo")


class Attention(nn.Module):
    """q, k and v of one input with an outlier channel, and o."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({name: nn.Linear(64, 64) for name in "qkvo"})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, o = (self.self_attn[name] for name in "qkvo")
        return o(q(x) * torch.sigmoid(k(x)) + v(x))


def data() -> Tensor:
    x = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(2))
    x[..., 7] *= 25
    return x.bfloat16()


def loop(model: nn.Module) -> None:
    for row in data().split(1):
        model(row)


def make() -> Attention:
    torch.manual_seed(0)
    return Attention().bfloat16().requires_grad_(False)


def linear_of(layer: str) -> nn.Linear:
    linear = make().get_submodule(layer)
    assert isinstance(linear, nn.Linear)
    return linear


def nvfp4(x: Tensor, amax: Tensor) -> Tensor:
    """To NVFP4 and back, as test_modelopt_backend.py compares with ModelOpt's tensor."""
    return fake_quantize(x, SimpleNamespace(_amax=amax))


def smoothed(linear: nn.Linear, facts: dict[str, Tensor]) -> Tensor:
    """The weight that is left to quantize, as `llvq/calibration.py` says, in fp32."""
    weight = linear.weight.float()
    if "pre_quant_scale" in facts:
        weight = weight / facts["pre_quant_scale"].float()
    if "lora_down" in facts:
        weight = weight - facts["lora_up"].float() @ facts["lora_down"].float()
    return weight


def composed(weight: Tensor, bias: Tensor, facts: dict[str, Tensor], x: Tensor) -> Tensor:
    """What a linear with such facts computes, given the quantized weight."""
    low_rank = torch.zeros(())
    if "pre_quant_scale" in facts:
        x = x * facts["pre_quant_scale"]
    if "lora_down" in facts:
        low_rank = (x @ facts["lora_down"].T) @ facts["lora_up"].T
    quantized = nvfp4(x, facts["input_scale"] * (6 * 448))
    return F.linear(quantized, weight, bias) + low_rank


def sqnr(reference: Tensor, found: Tensor) -> float:
    noise = (found.float() - reference.float()).pow(2).sum()
    return float(10 * torch.log10(reference.float().pow(2).sum() / noise))


def calibrated(name: str) -> Attention:
    model = make()
    calibrate(model, LAYERS, CONFIGS[name], loop)
    if name == "smoothquant":  # ModelOpt's way to give other quantizers to a model
        mtq.set_quantizer_by_cfg(model, quantizers(CONFIGS["max"], LAYERS))
    return model


def quantized(model: Any, layer: str, name: str) -> Any:
    linear = model.get_submodule(layer)
    if name == "smoothquant":
        linear.weight_quantizer.reset_amax()  # of INT8 rows
    return linear


def facts_of(model: Attention, layer: str) -> dict[str, Tensor]:
    prefix = f"dit.{layer}."
    found = collect(model, LAYERS)
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("layer", LAYERS)
def test_a_linear_with_facts_is_modelopts_linear(name: str, layer: str) -> None:
    model = calibrated(name)
    facts, linear = facts_of(model, layer), quantized(model, layer, name)
    with backend():
        theirs = linear(data())
    # Siblings share the scale of the weight in ModelOpt, and have their own in llvq.
    amax = getattr(linear.weight_quantizer, "_amax", linear.weight.abs().amax())
    ours = composed(nvfp4(linear.weight, amax), linear.bias, facts, data())
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("layer", LAYERS)
def test_its_weight_follows_from_the_checkpoint_and_the_facts(name: str, layer: str) -> None:
    model: Any = calibrated(name)
    facts, plain = facts_of(model, layer), linear_of(layer)
    theirs = model.get_submodule(layer).weight.float()
    ours = smoothed(plain, facts)
    # ModelOpt rounds to bf16 three times: the first factors, the weight smoothed with them, and
    # that with the shared ones. The branch is rounded after it was subtracted.
    terms = plain.weight.float().abs() / facts.get("pre_quant_scale", torch.ones(64)).float()
    if "lora_up" in facts:
        terms = terms + facts["lora_up"].float().abs() @ facts["lora_down"].float().abs()
    assert ((ours - theirs).abs() <= 3 * 2**-8 * terms).all()


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("layer", LAYERS)
def test_from_the_checkpoint_it_is_as_good_as_modelopts(name: str, layer: str) -> None:
    model, plain = calibrated(name), linear_of(layer)
    facts, linear = facts_of(model, layer), quantized(model, layer, name)
    with backend():
        theirs = linear(data())
    weight = smoothed(plain, facts).bfloat16()
    ours = composed(nvfp4(weight, weight.abs().amax()), plain.bias, facts, data())
    exact = plain(data())
    assert sqnr(exact, ours) > sqnr(exact, theirs) - 0.3


@pytest.mark.parametrize("name", ["awq_lite", "smoothquant", "svdquant"])
def test_siblings_agree_to_the_bit(name: str) -> None:
    facts = collect(calibrated(name), LAYERS)
    shared = ["input_scale", "pre_quant_scale", *(["lora_down"] if name == "svdquant" else [])]
    for fact in shared:
        q, k, v, o = (facts[f"dit.{layer}.{fact}"] for layer in LAYERS)
        assert torch.equal(q, k) and torch.equal(q, v) and not torch.equal(q, o)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_shapes_and_dtypes(name: str) -> None:
    facts = facts_of(calibrated(name), "self_attn.q")
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in facts.items()}
    expected: dict[str, Any] = {"input_scale": ((), torch.float32)}
    if name not in ("max", "mse"):
        expected["pre_quant_scale"] = ((64,), torch.bfloat16)
    if name == "svdquant":
        expected |= {"lora_down": ((32, 64), torch.bfloat16), "lora_up": ((64, 32), torch.bfloat16)}
    assert shapes == expected


def test_an_input_of_zeros_has_no_scale() -> None:
    model = make()
    calibrate(model, LAYERS, CONFIGS["max"], lambda model: model(torch.zeros(1, 2, 64).bfloat16()))
    assert "input_scale" not in facts_of(model, "self_attn.q")
