"""Estimates against arithmetic by hand, and against FLOPs that PyTorch counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llvq.backends.base import NUMERICS_OF_TARGET
from llvq.backends.chips import B200, H100_SXM
from llvq.compiler import Compiled, Stage, compile_model
from llvq.graphs.cost import macs
from llvq.models.config import ModelConfig
from llvq.plan import plan_compiled
from llvq.recipe import KvRecipe, Recipe
from llvq.roofline import LABEL, OpEstimate, Roofline, roofline

CASES = [(t, n) for t, all_of_it in NUMERICS_OF_TARGET.items() for n in all_of_it if t != "cpu"]


def made(compiled: Compiled, target: str, numerics: str) -> Roofline:
    found = roofline(compiled.stages, compiled.facts, compiled.recipe, target, numerics)
    assert found is not None
    return found


def ops_of(found: Roofline, place: int = 0) -> dict[str, OpEstimate]:
    return {op.op: op for op in found.estimates[place].ops}


@pytest.mark.parametrize(("target", "numerics"), CASES)
def test_all_flop_and_all_time_are_in_the_rows(
    compiled_whole: Compiled, target: str, numerics: str
) -> None:
    found = made(compiled_whole, target, numerics)
    assert found.label == LABEL and found.assumptions
    for estimate in found.estimates:
        denoise = compiled_whole.stages["denoise"].graph
        assert sum(op.flop for op in estimate.ops) == 2 * macs(denoise)
        assert sum(op.seconds for op in estimate.ops) == pytest.approx(estimate.stages["denoise"])
        assert all(op.seconds > 0 and op.nbytes > 0 for op in estimate.ops)


def test_a_chunk_is_its_calls_and_a_video_its_chunks(compiled_whole: Compiled) -> None:
    (estimate,) = made(compiled_whole, "sm_100a", "w4a4").estimates
    spent = estimate.stages
    assert spent.keys() == {"denoise", "refresh", "decode"}
    assert estimate.chunk == pytest.approx(
        4 * spent["denoise"] + spent["refresh"] + 2 * spent["decode"]
    )
    assert estimate.fps == pytest.approx(8 / estimate.chunk)  # 2 latent frames are 8 frames


def test_a_quantized_linear_by_hand(compiled_whole: Compiled) -> None:
    """12 tokens, 64 channels, FFN of 128: qkv, o, q, o, ffn.0 and ffn.2 of two layers."""
    shapes = [(64, 192), (64, 64), (64, 64), (64, 64), (64, 128), (128, 64)] * 2
    n = 12

    def traffic(k: int, f: int, x: float, w: float) -> float:
        return n * k * x + f * k * w + 2 * n * f + 2 * f  # bf16 result and bias

    # In w4a4 ffn.0 does the GELU, and o and ffn.2 add their gated residuals: another op each.
    alone = [(64, 192), (64, 64), (64, 64)] * 2
    global_w = 4 * sum(3 if f == 192 else 1 for _, f in shapes)
    both = 4 * len(shapes) + global_w
    both_alone = 4 * len(alone) + 4 * sum(3 if f == 192 else 1 for _, f in alone)
    scales = 4 * sum(n + f for _, f in shapes)
    nvfp4 = 1 / 2 + 1 / 16
    # Swizzled scales of a weight are padded to 128 rows; 64 and 128 channels fill their columns.
    padding = sum(-f % 128 * k // 16 for k, f in alone)
    for target, numerics, op, linears, x, w, more, dtype in (
        (
            "sm_100a",
            "w4a4",
            "nvfp4_linear_swizzled",
            alone,
            nvfp4,
            nvfp4,
            both_alone + padding,
            "fp4",
        ),
        ("sm_90a", "w4a8", "fp8_linear", shapes, 1, 1, scales, "fp8"),
        ("sm_90a", "w4a16", "nvfp4_linear_w4a16", shapes, 2, nvfp4, global_w, "bf16"),
        ("sm_90a", "w4a4-emulated", "nvfp4_linear", shapes, nvfp4, nvfp4, both, "bf16"),
    ):
        row = ops_of(made(compiled_whole, target, numerics))[f"llvq.{op}"]
        assert row.calls == len(linears) and row.computes_in == dtype
        assert row.flop == sum(2 * n * k * f for k, f in linears)
        assert row.nbytes == sum(traffic(k, f, x, w) for k, f in linears) + more
    rows = ops_of(made(compiled_whole, "sm_100a", "w4a4"))
    for op, linears in {
        "gelu": [(64, 128)] * 2,
        "gate_residual": [(64, 64), (128, 64)] * 2,
    }.items():
        row = rows[f"llvq.nvfp4_linear_{op}"]
        assert (row.calls, row.computes_in) == (len(linears), "fp4")
        assert row.flop == sum(2 * n * k * f for k, f in linears)


def test_time_is_the_longer_of_flop_and_bytes(compiled_whole: Compiled) -> None:
    found = made(compiled_whole, "sm_90a", "w4a8")
    assert found.estimates[0].product is H100_SXM
    row = ops_of(found)["llvq.gate_residual"]
    assert row.bound == "bytes" and row.seconds == pytest.approx(row.nbytes / 3.35e12)
    h100, h200 = (ops_of(found, place)["llvq.gate_residual"] for place in (0, 1))
    assert h100.seconds / h200.seconds == pytest.approx(4.8 / 3.35)


def test_of_a_pool_counts_what_is_touched(compiled_whole: Compiled) -> None:
    """History of three pages of one layer, and the page that the refresh writes."""
    found = made(compiled_whole, "sm_100a", "w4a4")
    row = ops_of(found)["llvq.paged_attention"]
    facts, dit = compiled_whole.facts, compiled_whole.config.dit
    page = facts.pages.nbytes // facts.pages.slots // dit.num_layers
    own, table = 4 * 12 * 64 * 2, 3 * 8  # q, k, v and the result in bf16; int64 slots
    assert row.nbytes == dit.num_layers * (own + 3 * page + table)


def test_there_is_none_without_a_datasheet_or_a_rate(
    compiled_whole: Compiled, compiled_fp32: Compiled
) -> None:
    assert plan_compiled(compiled_whole, target="cpu").roofline is None
    given = compiled_fp32.stages, compiled_fp32.facts, compiled_fp32.recipe
    assert roofline(*given, "sm_100a", "w4a4") is None


def test_a_model_without_a_vae_counts_denoising(compiled_nvfp4: Compiled) -> None:
    (estimate,) = made(compiled_nvfp4, "sm_100a", "w4a4").estimates
    assert estimate.stages.keys() == {"denoise", "refresh"} and estimate.product is B200


def test_a_weight_is_widened_before_anything_is_timed(compiled_nvfp4: Compiled) -> None:
    """And attention in FP8 is at the rate of FP8."""
    ops = ops_of(made(compiled_nvfp4, "sm_90a", "w4a8"))
    assert "llvq.widen" not in ops and "llvq.nvfp4_linear" not in ops
    attention = [op for name, op in ops.items() if "attention" in name]
    assert {op.computes_in for op in attention} == {"fp8"} and len(attention) == 2


def test_views_are_free(compiled_nvfp4: Compiled) -> None:
    stages: dict[str, Stage] = compiled_nvfp4.stages
    facts = replace(compiled_nvfp4.facts, steps=1)
    found = roofline(stages, facts, compiled_nvfp4.recipe, "sm_100a", "w4a4")
    assert found is not None
    assert not {"operator.getitem", "aten.split_with_sizes"} & ops_of(found).keys()


def test_attention_with_scores_in_fp4_is_two_products(tiny_config: ModelConfig) -> None:
    """Half of the FLOP each, and together no slower than all of it in bf16."""
    rows = {}
    for qk in ("none", "nvfp4"):
        compiled = compile_model(tiny_config, Recipe(kv=KvRecipe(qk=qk)))
        (estimate,) = made(compiled, "sm_100a", "w4a4").estimates
        rows[qk] = [row for row in estimate.ops if "paged_attention" in row.op]
    (plain,), halves = rows["none"], rows["nvfp4"]
    assert {row.op for row in halves} == {"llvq.paged_attention_fp4"}
    assert {row.computes_in for row in halves} == {"fp4", "bf16"}
    assert {row.flop for row in halves} == {plain.flop // 2}
    assert sum(row.nbytes for row in halves) == plain.nbytes
