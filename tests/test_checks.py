"""Check vectors notice a wrong weight, and are exact on the machine that made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from llvq import checks
from llvq.checks import CheckResult, check_stage, record_checks, relative_l2
from llvq.compiler import compile_model, instantiate
from llvq.models.config import ModelConfig
from llvq.recipe import KvRecipe, Recipe
from llvq.runtime.executable import Executable
from llvq.sources import DictSource


@pytest.fixture(scope="module")
def recorded(executable: Executable) -> checks.Checks:
    return record_checks(executable)


def results(executable: Executable, recorded: checks.Checks) -> list[CheckResult]:
    return [
        result
        for name, vectors in recorded.vectors.items()
        for result in check_stage(executable.stages[name], vectors, executable.device)
    ]


def test_every_stage_has_vectors(executable: Executable, recorded: checks.Checks) -> None:
    assert set(recorded.vectors) == set(executable.stages)
    assert recorded.skipped == {}


def test_the_same_machine_gives_the_same_bytes(
    executable: Executable, recorded: checks.Checks
) -> None:
    assert all(result.exact for result in results(executable, recorded))


def test_denoising_is_checked_on_a_page_that_refresh_wrote(recorded: checks.Checks) -> None:
    vectors = recorded.vectors["denoise"]
    assert vectors["in.page_table"].tolist() == [0]
    assert vectors["in.pages.codes"].any()
    assert recorded.vectors["refresh"]["out.pages.codes"].any()


@pytest.mark.parametrize("stage", ["condition", "refresh", "denoise", "decode", "encode_text"])
def test_a_changed_weight_is_noticed(
    executable: Executable, recorded: checks.Checks, stage: str
) -> None:
    graph = executable.stages[stage].graph
    name = next(n for n, t in graph.named_buffers() if t.ndim > 1 and t.dtype == torch.bfloat16)
    owner, _, leaf = name.rpartition(".")
    module = graph.get_submodule(owner)
    kept = getattr(module, leaf)
    setattr(module, leaf, kept * 3 + 1)
    try:
        found = check_stage(executable.stages[stage], recorded.vectors[stage], executable.device)
    finally:
        setattr(module, leaf, kept)
    assert not all(result.passed for result in found)


def test_large_stages_are_skipped_with_the_reason(
    executable: Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MAX_MACS", 1000)
    text = executable.stages["encode_text"]
    recorded = record_checks(replace(executable, stages={"encode_text": text}))
    assert recorded.vectors == {}
    assert "multiply-accumulates" in recorded.skipped["encode_text"]


def test_relative_l2_counts_bytes_of_codes() -> None:
    codes = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    assert relative_l2(codes, codes) == 0
    assert relative_l2(codes + torch.tensor([0, 0, 0, 1], dtype=torch.uint8), codes) == 0.25
    assert relative_l2(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(0.08)


def test_denoising_is_checked_on_what_is_kept_too(
    tiny_config: ModelConfig, make_weights: Callable[[ModelConfig], DictSource]
) -> None:
    recipe = Recipe(kv=KvRecipe(keep=("newest",)))
    compiled = compile_model(tiny_config, recipe)
    model = instantiate(compiled, make_weights(tiny_config))
    found = record_checks(model)
    slots = compiled.facts.pages.slots
    assert found.vectors["denoise"]["in.page_table"].tolist() == [0, slots]
    assert found.vectors["refresh"]["out.pages.kept"].any()
    assert all(result.exact for result in results(model, found))
