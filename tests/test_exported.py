"""A second family of models: diffusers' Wan transformer, bidirectional, without a cache."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from examples.diffusers_wan import RATES, RECIPE, example_inputs, tiny_model
from llvq.errors import CaptureError, ContractError, MissError, RecipeError
from llvq.exported import quantize
from llvq.recipe import LinearRecipe, Recipe

NOTHING = Recipe(linear=LinearRecipe(exclude=("*",)))
REASONS = {
    "raise-norm-modulate": {"norm_out": "rounds the modulation, not the norm"},
    "raise-qk-norm-rope": {"blocks.*.attn1": "the tables are rounded to bf16"},
}


@lru_cache
def exported(kind: str) -> tuple[torch.export.ExportedProgram, dict[str, Tensor], Tensor]:
    """The export of one kind of model, its inputs and what it gives: fp32, mixed as diffusers
    loads it, cast to bf16 as a whole, or mixed with a timestep for each token."""
    model = tiny_model()
    if kind == "fp32":
        model = model.float()
    elif kind == "bf16":
        model = model.to(torch.bfloat16)
    inputs = example_inputs(torch.float32 if kind == "fp32" else torch.bfloat16)
    if kind == "per token":
        inputs["timestep"] = torch.linspace(0, 999, 3 * 4 * 4).reshape(1, -1)
    with torch.no_grad():
        wanted = model(**inputs, return_dict=False)[0]
    arguments = {**inputs, "return_dict": False}
    return torch.export.export(model, (), arguments, strict=False), inputs, wanted


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("rates", [{}, RATES], ids=["one stage", "three stages"])
@pytest.mark.parametrize("kind", ["fp32", "mixed", "per token"])
def test_without_quantization_every_bit_stays(kind, rates):
    """fp32 is asked for within 1e-5 and bf16 within an ulp: both are bit for bit on the CPU."""
    program, inputs, wanted = exported(kind)
    (found,) = quantize(program, NOTHING, rates=rates).module()(**inputs)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 if kind == "fp32" else 0)


@pytest.mark.parametrize("kind", ["fp32", "mixed", "per token"])
def test_every_site_is_raised_and_every_linear_accounted_for(kind):
    reports = quantize(exported(kind)[0], RECIPE).reports
    books = {book.rule: book for report in reports for book in report.books}
    expected = {
        "attention": 4,
        "norm-modulate": 5,
        "rms-norm": 8,
        "rope": 4,
        "rms-norm-rope": 4,
        "norm-modulate-quantize": 4,
        "gelu-quantize": 2,
        "gate-residual": 4,
        "nvfp4-linear": 20,
    }
    assert {rule: books[rule].hits for rule in expected} == expected
    assert all(books[rule].sites == books[rule].hits for rule in expected)
    assert books["linear"].sites == 26 and books["linear"].hits == 20
    assert dict(books["linear"].excluded) == {"condition_embedder.*": 5, "proj_out": 1}


@pytest.mark.parametrize("kind", ["fp32", "mixed"])
def test_nvfp4_is_close_and_four_over_six_closer_than_max(kind):
    program, inputs, wanted = exported(kind)
    errors = {}
    for rule in ("four_over_six", "max"):
        linear = replace(RECIPE.linear, weight_rule=rule, activation_rule=rule)
        quantized = quantize(program, replace(RECIPE, linear=linear))
        errors[rule] = relative(quantized.module()(**inputs)[0], wanted)
    assert errors["four_over_six"] < errors["max"] < 0.05


def test_a_model_cast_as_a_whole_is_refused_with_the_rounding():
    """`.to(bfloat16)` rounds what diffusers keeps in fp32; the rules know neither rounding."""
    program, inputs, wanted = exported("bf16")
    with pytest.raises(MissError) as norm:
        quantize(program, NOTHING)
    assert "scale is torch.bfloat16 but the norm is not rounded" in str(norm.value)
    assert "norm_out" in str(norm.value)
    first = {"raise-norm-modulate": REASONS["raise-norm-modulate"]}
    with pytest.raises(MissError) as rope:
        quantize(program, replace(NOTHING, allow_miss=first))
    assert "cos is torch.bfloat16, which rounds the angles" in str(rope.value)
    allowed = quantize(program, replace(NOTHING, allow_miss=REASONS))
    books = {book.rule: book for report in allowed.reports for book in report.books}
    assert books["norm-modulate"].tolerated.total() == 1
    assert books["rope"].tolerated.total() == 4
    assert torch.equal(allowed.module()(**inputs)[0], wanted)


def test_inputs_go_by_position_too_and_are_checked():
    program, inputs, wanted = exported("fp32")
    module = quantize(program, NOTHING).module()
    assert torch.equal(module(*inputs.values())[0], module(**inputs)[0])
    with pytest.raises(ContractError, match="is missing"):
        module(inputs["hidden_states"])
    with pytest.raises(ContractError, match="hidden_states is float64"):
        module(**{**inputs, "hidden_states": inputs["hidden_states"].double()})
    with pytest.raises(ContractError, match="takes 3 tensors, not 4"):
        module(*inputs.values(), wanted)
    with pytest.raises(ContractError, match="scale is not an input"):
        module(**inputs, scale=wanted)


def test_a_rate_for_no_input_is_refused():
    with pytest.raises(RecipeError, match="did you mean 'timestep'"):
        quantize(exported("fp32")[0], NOTHING, rates={"timesteps": "step"})


class Nested(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> dict[str, object]:
        return {"sum": pair[0] + pair[1], "parts": [pair[0].sin(), pair[1]]}


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + 1, None


def test_outputs_come_back_in_the_shape_of_the_export():
    pair = (torch.randn(3), torch.randn(3))
    program = torch.export.export(Nested(), (pair,), strict=False)
    found = quantize(program, NOTHING).module()(*pair)
    assert torch.equal(found["sum"], pair[0] + pair[1])
    assert torch.equal(found["parts"][0], pair[0].sin()) and torch.equal(found["parts"][1], pair[1])


def test_what_is_no_tensor_cannot_be_returned():
    program = torch.export.export(Nothing(), (torch.randn(3),), strict=False)
    with pytest.raises(CaptureError, match="not a tensor"):
        quantize(program, NOTHING)
