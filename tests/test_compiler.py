"""Compiling: the same stages each time, facts for the runtime, weights joined by plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from llvq import graphs
from llvq.compiler import Compiled, compile_model, instantiate
from llvq.errors import CacheError, MissError, RecipeError
from llvq.models.config import ModelConfig
from llvq.program import weight_names
from llvq.recipe import NVFP4, LinearRecipe
from llvq.sources import DictSource


def test_stages_in_the_order_they_feed_each_other(compiled_nvfp4: Compiled) -> None:
    assert set(compiled_nvfp4.stages) == {"condition", "modulate", "denoise", "refresh"}
    known = {"prompt_embeds", "timestep", "latent", "positions", "page_table", "slot"}
    known |= {name for name, _, _ in compiled_nvfp4.facts.pages.tensors}
    for stage in compiled_nvfp4.stages.values():
        assert {spec.name for spec in stage.inputs} <= known
        known |= set(stage.outputs)
    assert compiled_nvfp4.stages["denoise"].outputs == ("velocity",)
    assert compiled_nvfp4.stages["refresh"].outputs == ()


def test_twenty_linears_are_nvfp4_and_six_are_not(compiled_nvfp4: Compiled) -> None:
    quantized = [r for r in compiled_nvfp4.weights.values() if r.op == "quantize"]
    assert sum(len(record.sources) for record in quantized) == 20
    outer = {"dit.head.head.weight", "dit.text_embedding.0.weight", "dit.time_projection.1.weight"}
    assert all(compiled_nvfp4.weights[name].op == "copy" for name in outer)


def test_every_weight_that_a_stage_reads_is_made_and_none_is_left(compiled_nvfp4: Compiled) -> None:
    read = set().union(*(weight_names(stage.graph) for stage in compiled_nvfp4.stages.values()))
    made = {name for record in compiled_nvfp4.weights.values() for name in record.targets}
    assert read == made


def test_compiling_twice_gives_the_same_graphs(
    compiled_nvfp4: Compiled, tiny_config: ModelConfig
) -> None:
    again = compile_model(tiny_config, NVFP4)
    for name, stage in compiled_nvfp4.stages.items():
        assert graphs.digest(stage.graph) == graphs.digest(again.stages[name].graph)
    assert again.weights == compiled_nvfp4.weights and again.facts == compiled_nvfp4.facts


def test_facts_come_from_the_configuration(compiled_nvfp4: Compiled) -> None:
    facts = compiled_nvfp4.facts
    assert (facts.window_frames, facts.sink_frames, facts.latent_hw) == (8, 2, (4, 6))
    assert facts.pages.kv_format == "nvfp4" and facts.pages.slots == 4
    shapes = {name: shape for name, _, shape in facts.pages.tensors}
    assert shapes["pages.codes"] == (2, 2, 4, 12, 2, 16)


def test_weights_keep_their_numbers(
    compiled_fp32: Compiled,
    tiny_config: ModelConfig,
    make_weights: Callable[[ModelConfig], DictSource],
) -> None:
    weights = make_weights(tiny_config)
    stage = instantiate(compiled_fp32, weights).stage("denoise")
    state = dict(stage.graph.named_buffers()) | dict(stage.graph.named_parameters())
    assert torch.equal(state["dit.head.head.weight"], weights.read("dit.head.head.weight"))


def test_heads_that_nvfp4_pages_cannot_hold_are_refused(tiny_config: ModelConfig) -> None:
    narrow = replace(tiny_config, dit=replace(tiny_config.dit, num_heads=8, num_layers=1))
    with pytest.raises(CacheError, match="heads of 8 channels"):
        compile_model(narrow, NVFP4)


def test_a_linear_that_nvfp4_cannot_hold_must_be_excluded(tiny_config: ModelConfig) -> None:
    odd = replace(tiny_config, dit=replace(tiny_config.dit, ffn_dim=40, num_layers=1))
    with pytest.raises(MissError, match="insert-quantize") as caught:
        compile_model(odd, NVFP4)
    assert "dit.blocks.0.ffn.2" in str(caught.value) and "40" in str(caught.value)
    excluded = LinearRecipe(exclude=(*NVFP4.linear.exclude, "*.ffn.2"))
    compiled = compile_model(odd, replace(NVFP4, linear=excluded))
    assert "denoise" in compiled.stages


def test_a_sensitive_layer_can_stay_out(tiny_config: ModelConfig) -> None:
    """Its siblings are quantized all the same; the norm before them stays whole, by that glob."""
    glob = "*.blocks.1.self_attn.k"
    linear = replace(NVFP4.linear, exclude=(*NVFP4.linear.exclude, glob))
    compiled = compile_model(tiny_config, replace(NVFP4, linear=linear))
    books = {book.rule: book for report in compiled.reports for book in report.books}
    assert books["linear"].excluded[glob] == 1
    assert books["norm-modulate-quantize"].excluded == {glob: 1}
    assert "dit.blocks.1.self_attn.q_v" in compiled.weights
    assert "dit.blocks.0.self_attn.q_k_v" in compiled.weights


def test_a_tolerance_must_name_a_pass_that_can_use_it(tiny_config: ModelConfig) -> None:
    recipe = replace(NVFP4, allow_miss={"fuse-gelu-quantise": {"*": "a typing error"}})
    with pytest.raises(RecipeError, match="fuse-gelu-quantise") as caught:
        compile_model(tiny_config, recipe)
    assert "did you mean 'fuse-gelu-quantize'?" in str(caught.value)
