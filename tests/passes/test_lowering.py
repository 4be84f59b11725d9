"""Lowering by numerics: every stage of a whole program, its contract, and its error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from llvq import graphs
from llvq.calibration import LayerFacts
from llvq.compiler import Compiled, Stage, compile_model, instantiate
from llvq.errors import TargetError
from llvq.models.config import ModelConfig
from llvq.passes.lowering import LOWERINGS, lower_to_numerics
from llvq.passes.spec import verify_graph
from llvq.program import Level, placeholders
from llvq.recipe import NVFP4, KvRecipe, Recipe
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.sampler import schedule
from llvq.sources import DictSource

CHANGED = ("w4a4", "w4a8", "w4a16")
WITHOUT_BRANCHES = ("w4a8", "w4a16")


def stages_of(compiled: Compiled) -> dict[str, GraphModule]:
    """The stages as a program file gives them."""
    return {
        name: graphs.load(graphs.dump(stage.graph), device="meta")
        for name, stage in compiled.stages.items()
    }


def contract(gm: GraphModule) -> tuple[object, ...]:
    """What a stage takes, what it gives and the weights that it reads."""
    return (*graphs.signature(graphs.dump(gm)), [n.target for n in placeholders(gm.graph)])


def calls(modules: dict[str, GraphModule], stage: str) -> Counter[str]:
    nodes = modules[stage].graph.nodes
    names = (str(n.target).removesuffix(".default") for n in nodes if n.op == "call_function")
    return Counter(name for name in names if name != "<built-in function getitem>")


def test_every_pass_is_staged_and_named_like_its_function() -> None:
    steps = [step for passes in LOWERINGS.values() for step in passes]
    assert len({step.name for step in steps}) == len(steps)
    assert {step.reaches for step in steps} == {Level.STAGED}
    assert all(step.summary and not step.summary.startswith(step.name) for step in steps)


def test_w4a4_emulated_is_what_a_program_says(compiled_nvfp4: Compiled) -> None:
    modules = stages_of(compiled_nvfp4)
    before = {name: graphs.digest(gm) for name, gm in modules.items()}
    assert lower_to_numerics(modules, "w4a4-emulated", NVFP4) == []
    assert {name: graphs.digest(gm) for name, gm in modules.items()} == before


@pytest.mark.parametrize("numerics", CHANGED)
def test_contracts_and_weights_stay(numerics: str, compiled_nvfp4: Compiled) -> None:
    modules = stages_of(compiled_nvfp4)
    before = {name: contract(gm) for name, gm in modules.items()}
    weights = {name: set(graphs.weights(gm)) for name, gm in modules.items()}
    reports = lower_to_numerics(modules, numerics, NVFP4)
    assert [r.name for r in reports] == [step.name for step in LOWERINGS[numerics]]
    assert all(b.balanced and not b.misses for r in reports for b in r.books)
    assert reports[0].total("hits") == reports[0].total("sites") == 21
    for name, gm in modules.items():
        verify_graph(name, gm, Level.STAGED)
        assert contract(gm) == before[name]
        assert set(graphs.weights(gm)) <= weights[name]
        graphs.load(graphs.dump(gm), device="cpu")


def test_only_linears_change_in_w4a4(compiled_nvfp4: Compiled) -> None:
    """Each has a weight of its own. Scales are dynamic: a quantize stays behind each GELU."""
    modules = stages_of(compiled_nvfp4)
    before = calls(modules, "denoise")
    lower_to_numerics(modules, "w4a4", NVFP4)
    found = calls(modules, "denoise")
    linears, gelus, gates = 2 * 6, 2, 2 * 2
    assert found.pop("llvq.nvfp4_linear_swizzled") == linears - gelus - gates
    assert found.pop("llvq.nvfp4_linear_gelu") == gelus == before.pop("llvq.gelu_quantize")
    assert found.pop("llvq.nvfp4_linear_gate_residual") == gates
    assert before.pop("llvq.nvfp4_linear") == linears == found.pop("llvq.swizzle_scales")
    before["llvq.quantize"] += gelus
    before["llvq.gate_residual"] -= gates
    assert +found == +before


def test_a_block_in_w4a8(compiled_nvfp4: Compiled) -> None:
    """Two blocks: a norm before each linear is fused with the residual before it, but the first."""
    modules = stages_of(compiled_nvfp4)
    lower_to_numerics(modules, "w4a8", NVFP4)
    found = calls(modules, "denoise")
    ours = {name.removeprefix("llvq."): n for name, n in found.items() if name.startswith("llvq")}
    assert ours == {
        "norm_modulate_quantize_fp8": 1,
        "widen": 2 * 6,
        "fp8_linear": 2 * 6,
        "fp8_norm_scale": 2 * 3,
        "rms_norm_rope": 2,
        "rms_norm_rope_fp8": 2 * 2,
        "paged_attention_quantize_fp8": 2,
        "add_norm_quantize_fp8": 2 * 3 - 1,
        "attention_quantize_fp8": 2,
        "gelu_quantize_fp8": 2,
        "gate_residual": 1,
        "norm_modulate": 1,
    }
    assert not found["aten.add.Tensor"] and not found["aten.layer_norm"]


def test_the_vae_and_the_text_encoder_are_left_alone(compiled_whole: Compiled) -> None:
    modules = stages_of(compiled_whole)
    denoiser = ("condition", "modulate", "denoise", "refresh")
    before = {name: graphs.digest(gm) for name, gm in modules.items() if name not in denoiser}
    assert any("decode" in name for name in before) and "encode_text" in before
    reports = lower_to_numerics(modules, "w4a8", NVFP4)
    assert {name: graphs.digest(modules[name]) for name in before} == before
    excluded = next(r for r in reports if r.name == "attention-to-fp8").books[-1].excluded
    assert excluded["nothing in its stage is quantized"] > 0


@pytest.mark.parametrize("numerics", CHANGED)
def test_a_second_run_changes_nothing(numerics: str, compiled_nvfp4: Compiled) -> None:
    modules = stages_of(compiled_nvfp4)
    lower_to_numerics(modules, numerics, NVFP4)
    before = {name: graphs.digest(gm) for name, gm in modules.items()}
    reports = lower_to_numerics(modules, numerics, NVFP4)
    assert sum(report.total("sites") for report in reports) == 0
    assert {name: graphs.digest(gm) for name, gm in modules.items()} == before


@pytest.mark.parametrize("numerics", WITHOUT_BRANCHES)
def test_a_low_rank_branch_is_refused(numerics: str, tiny_config: ModelConfig) -> None:
    layer = "dit.blocks.1.self_attn.o"
    known = {layer: LayerFacts(lora_down=f"{layer}.lora_down", lora_up=f"{layer}.lora_up", rank=4)}
    modules = stages_of(compile_model(tiny_config, NVFP4, calibration=known))
    with pytest.raises(TargetError, match=f"{numerics} cannot run 1 of 21 sites") as caught:
        lower_to_numerics(modules, numerics, NVFP4)
    assert "a low-rank branch has no implementation outside of NVFP4 yet" in str(caught.value)
    assert layer in str(caught.value)


def lowered(compiled: Compiled, numerics: str) -> Compiled:
    modules = stages_of(compiled)
    lower_to_numerics(modules, numerics, compiled.recipe)
    stages = {
        name: Stage(modules[name], stage.inputs, stage.outputs)
        for name, stage in compiled.stages.items()
    }
    return replace(compiled, stages=stages)


def rollout(compiled: Compiled, weights: DictSource, chunks: int) -> Tensor:
    """x0 of every chunk; the later ones attend to pages."""
    stream, generator = compiled.config.stream, torch.Generator().manual_seed(0)
    dtype = getattr(torch, compiled.recipe.dtype)
    denoiser = Denoiser(instantiate(compiled, weights), schedule(2, stream.shift))
    prompt = torch.randn(1, 5, 32, generator=generator).to(dtype)
    noises = torch.randn(chunks, 1, 2, 8, 4, 6, generator=generator).to(dtype)
    found = [
        denoiser.run(i, noise, prompt, scene_cut=False, image=None).x0
        for i, noise in enumerate(noises)
    ]
    return torch.stack(found).float()


@pytest.mark.parametrize("kv_format", ["nvfp4", "none"])
def test_errors_over_a_rollout_are_no_worse_than_those_of_w4a4(
    kv_format: str,
    tiny_config: ModelConfig,
    compiled_fp32: Compiled,
    make_weights: Callable[[ModelConfig], DictSource],
) -> None:
    weights = make_weights(tiny_config)
    exact = rollout(compiled_fp32, weights, 3)
    compiled = compile_model(tiny_config, Recipe(kv=KvRecipe(format=kv_format)))
    error = {
        numerics: float((rollout(lowered(compiled, numerics), weights, 3) - exact).norm())
        for numerics in LOWERINGS
    }
    assert 0 < error["w4a8"] < error["w4a4"] and 0 < error["w4a16"] < error["w4a4"]
    assert error["w4a4"] == error["w4a4-emulated"]


FP4_SCORES = Recipe(kv=KvRecipe(qk="nvfp4"))


def test_scores_in_fp4_are_for_w4a4_and_a_recipe_that_says_so(tiny_config: ModelConfig) -> None:
    modules = stages_of(compile_model(tiny_config, FP4_SCORES))
    reports = lower_to_numerics(modules, "w4a4", FP4_SCORES)
    (book,) = next(report for report in reports if report.name == "scores-in-fp4").books
    assert book.hits == book.sites >= 2
    found = calls(modules, "denoise")
    assert found["llvq.paged_attention_fp4"] == 2 and not found["llvq.paged_attention"]


@pytest.mark.parametrize("numerics", sorted(LOWERINGS.keys() - {"w4a4"}))
def test_scores_in_fp4_are_refused_elsewhere(numerics: str, tiny_config: ModelConfig) -> None:
    modules = stages_of(compile_model(tiny_config, FP4_SCORES))
    with pytest.raises(TargetError, match=f"{numerics} cannot multiply Q with K in nvfp4") as found:
        lower_to_numerics(modules, numerics, FP4_SCORES)
    assert "leave kv.qk out of the recipe" in str(found.value)
