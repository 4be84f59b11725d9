"""What quantizing did to the weights, counted against what the plan really makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llvq.cli.weight_summary import (
    WeightSummary,
    input_scales,
    print_summary,
    scales_text,
    summarize,
)
from llvq.compiler import Compiled
from llvq.models.config import ModelConfig
from llvq.sources import DictSource
from llvq.weights import materialize


def test_counts_and_bytes_are_those_of_the_plan(
    compiled_nvfp4: Compiled,
    tiny_config: ModelConfig,
    make_weights: Callable[[ModelConfig], DictSource],
) -> None:
    source = make_weights(tiny_config)
    found = summarize(compiled_nvfp4, source)
    assert found.quantized == 10 * tiny_config.dit.num_layers  # q k v o of two attentions, ffn
    assert found.kept["*head.head"] == 1 and found.unused_globs == ()
    assert sum(found.kept.values()) == 6
    made = [materialize(record, source) for record in compiled_nvfp4.weights.values()]
    assert found.bytes_after == sum(t.nbytes for tensors in made for t in tensors.values())
    assert found.bytes_before == sum(source.read(name).nbytes for name in source.names())


def test_a_glob_that_keeps_nothing_is_named(
    compiled_nvfp4: Compiled,
    tiny_config: ModelConfig,
    make_weights: Callable[[ModelConfig], DictSource],
) -> None:
    recipe = compiled_nvfp4.recipe
    linear = replace(recipe.linear, exclude=(*recipe.linear.exclude, "*.haed"))
    misspelt = replace(compiled_nvfp4, recipe=replace(recipe, linear=linear))
    assert summarize(misspelt, make_weights(tiny_config)).unused_globs == ("*.haed",)


def test_scales_of_inputs_are_counted_by_linear() -> None:
    known = [{"input_scale": "q.input_scale"}, {"rank": 4}, {"input_scale": "q.input_scale"}]
    records = [
        {"op": "quantize", "sources": ["q", "k", "v"], "facts": known},
        {"op": "quantize", "sources": ["o"]},
        {"op": "copy", "sources": ["b"]},
    ]
    assert input_scales(records) == {"static": 2, "dynamic": 2}
    assert scales_text({"static": 2, "dynamic": 2}) == "2 static, 2 dynamic"
    assert scales_text({"static": 0, "dynamic": 7}) == "7 dynamic"
    assert scales_text({"static": 0, "dynamic": 0}) is None


def test_a_model_without_facts_is_dynamic(
    compiled_nvfp4: Compiled,
    tiny_config: ModelConfig,
    make_weights: Callable[[ModelConfig], DictSource],
) -> None:
    found = summarize(compiled_nvfp4, make_weights(tiny_config))
    assert found.inputs == {"static": 0, "dynamic": found.quantized}


SUMMARY = WeightSummary(20, {"*head": 1}, ("*.haed",), {"dit": (4096, 1024), "vae": (512, 512)})


def test_the_ratio_is_before_over_after() -> None:
    assert SUMMARY.ratio == 3.0 and SUMMARY.to_dict()["ratio"] == 3.0
    assert WeightSummary(0, {}, (), {}).ratio == 1.0


def test_a_line_per_glob(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(SUMMARY)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "linears in NVFP4 20",
        "kept by *head 1",
        "globs that kept nothing *.haed",
        "weights of dit 4.0 KiB -> 1.0 KiB (4.00x smaller)",
        "weights of vae 512 B",
    ]
    print_summary(replace(SUMMARY, unused_globs=()))
    assert "nothing" not in capsys.readouterr().out
