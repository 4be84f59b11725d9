"""Check vectors notice a wrong weight, and are exact on the machine that made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llvq import checks
from llvq.checks import CheckResult, check_stage, record_checks, relative_l2
from llvq.compiler import compile_model, instantiate
from llvq.formats.kv import KV_FORMATS
from llvq.models.config import ModelConfig
from llvq.recipe import KvRecipe, Recipe
from llvq.runtime.executable import Executable
from llvq.sources import DictSource

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def recorded(executable: Executable) -> checks.Checks:
    return record_checks(executable)


def checked(executable: Executable, name: str, vectors: Mapping[str, Tensor]) -> list[CheckResult]:
    stage = executable.stages[name]
    return check_stage(stage, vectors, executable.device, executable.facts.pages)


def results(executable: Executable, recorded: checks.Checks) -> list[CheckResult]:
    return [
        result
        for name, vectors in recorded.vectors.items()
        for result in checked(executable, name, vectors)
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
        found = checked(executable, stage, recorded.vectors[stage])
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


def test_a_slot_that_refresh_did_not_write_is_noticed(
    executable: Executable, recorded: checks.Checks
) -> None:
    vectors = dict(recorded.vectors["refresh"])
    scale = "out.pages.global_scale"
    vectors[scale] = vectors[scale] * torch.tensor([1.0, 1.5]).view(2, 1, 1)  # of one layer
    (found,) = checked(executable, "refresh", vectors)
    assert found.output == "pages" and not found.exact and not found.passed


@pytest.mark.parametrize("kv_format", ["nvfp4", "fp8", "none"])
def test_pages_are_compared_by_what_they_hold(kv_format: str) -> None:
    """K and V that are within the limit are so in pages, whatever codes and scales they have."""
    kv, shape = KV_FORMATS[kv_format], (32, 2, 64)
    random = torch.Generator().manual_seed(1)
    pools = [
        [torch.zeros(sizes, dtype=dtype) for _, dtype, sizes in kv.specs(1, 2, *shape, BF16)]
        for _ in range(2)
    ]
    for which in (0, 1):
        chunk, noise = (torch.randn(shape, generator=random) for _ in range(2))
        for pool, x in zip(pools, (chunk, chunk + checks.LIMIT * noise), strict=True):
            kv.write(pool, 0, which, torch.tensor(1), x.to(BF16))
    held = [checks._held(pool, kv_format) for pool in pools]
    assert 0 < relative_l2(*held) <= checks.PAGES_LIMIT


def test_relative_l2_is_a_share_of_what_is_wanted() -> None:
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
