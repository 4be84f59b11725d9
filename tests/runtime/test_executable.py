"""Stages check what they are given; facts survive the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from llvq.compiler import Compiled, instantiate
from llvq.errors import ArtifactError, ContractError
from llvq.models.config import ModelConfig
from llvq.runtime.executable import Executable, PageSpec, RunFacts
from llvq.sources import DictSource


@pytest.fixture(scope="module")
def executable(
    compiled_fp32: Compiled,
    tiny_config: ModelConfig,
    make_weights: Callable[[ModelConfig], DictSource],
) -> Executable:
    return instantiate(compiled_fp32, make_weights(tiny_config))


def test_a_stage_gives_its_outputs_by_name(executable: Executable) -> None:
    stage = executable.stage("modulate")
    outputs = stage({"timestep": torch.tensor([[999.0, 0.0]]), "surplus": torch.ones(1)})
    assert tuple(outputs) == stage.outputs
    assert all(value.isfinite().all() for value in outputs.values())


def test_a_stage_refuses_another_shape_or_a_missing_input(executable: Executable) -> None:
    with pytest.raises(ContractError, match="timestep"):
        executable.stage("modulate")({"timestep": torch.zeros(1, 3)})
    with pytest.raises(ContractError, match="prompt_embeds is missing"):
        executable.stage("condition")({})


def test_a_stage_that_is_not_there(executable: Executable) -> None:
    with pytest.raises(ArtifactError, match="no 'encode_text' stage") as caught:
        executable.stage("encode_text")
    assert "denoise" in str(caught.value)


def test_facts_survive_json(compiled_nvfp4: Compiled) -> None:
    facts = compiled_nvfp4.facts
    assert RunFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_facts_of_another_version_are_refused(compiled_nvfp4: Compiled, change: str) -> None:
    document = compiled_nvfp4.facts.to_dict()
    if change == "missing":
        del document["steps"]
    else:
        document["speed"] = 2
    with pytest.raises(ArtifactError, match="do not fit") as caught:
        RunFacts.from_dict(document)
    assert "steps" in str(caught.value) or "speed" in str(caught.value)


def test_sizes_follow_from_the_facts(compiled_nvfp4: Compiled) -> None:
    facts = compiled_nvfp4.facts
    assert facts.pixel_hw == (64, 96) and facts.torch_dtype == torch.bfloat16


def test_pages_are_counted_in_bytes() -> None:
    pages = PageSpec("x", 2, (("a", "uint8", (2, 3)), ("b", "float32", (5,))))
    assert pages.nbytes == 6 + 20
