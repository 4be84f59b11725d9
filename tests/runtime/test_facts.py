"""Facts survive the manifest; facts that no model has are refused, all of them in one error."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from llvq.compiler import Compiled
from llvq.errors import ArtifactError
from llvq.runtime.facts import PageSpec, RunFacts


@pytest.fixture
def document(compiled_nvfp4: Compiled) -> dict[str, Any]:
    return json.loads(json.dumps(compiled_nvfp4.facts.to_dict()))


def test_facts_survive_json(compiled_nvfp4: Compiled, document: dict[str, Any]) -> None:
    assert RunFacts.from_dict(document) == compiled_nvfp4.facts


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_facts_of_another_version_are_refused(document: dict[str, Any], change: str) -> None:
    if change == "missing":
        del document["steps"]
    else:
        document["speed"] = 2
    with pytest.raises(ArtifactError, match="do not fit") as caught:
        RunFacts.from_dict(document)
    assert "steps" in str(caught.value) or "speed" in str(caught.value)


def test_every_wrong_fact_is_named_in_one_error(document: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError) as caught:
        RunFacts.from_dict(document | {"steps": 0, "dtype": "int8", "fps": True})
    assert all(text in str(caught.value) for text in ("dtype is 'int8'", "fps is True", "steps is"))


@pytest.mark.parametrize("value", [None, True, -1, 10**15, 1.5, "x", [], {}, [1, "x"]], ids=str)
@pytest.mark.parametrize("name", RunFacts.__dataclass_fields__)
def test_no_fact_is_taken_as_it_comes(document: dict[str, Any], name: str, value: Any) -> None:
    legal = {
        "loops": [[]],
        "multi_shot_rope_offset": [-1, 10**15, 1.5],
        "multi_shot_sink": [True],
        "relative_rope": [True],
        "scene_cut_prefix": ["x"],
        "shift": [10**15, 1.5],
        "timesteps": [[]],
    }
    if any(value == kept and type(value) is type(kept) for kept in legal.get(name, [])):
        return
    with pytest.raises(ArtifactError, match="run facts"):
        RunFacts.from_dict(document | {name: value})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"window_frames": 7}, "window_frames 7 is not whole chunks of 2 frames"),
        ({"sink_frames": 8}, "has no room to roll"),
        ({"timesteps": [1000, 500]}, "timesteps 1000, 500 for UniPC"),
        ({"sampler": "renoise"}, "4 sampling steps for 0 timesteps"),
    ],
)
def test_facts_that_contradict_each_other(
    document: dict[str, Any], change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        RunFacts.from_dict(document | change)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    [["codes"], ["codes", "uint9", [1]], ["codes", "uint8", [-1]], ["codes", "uint8", [2**20] * 9]],
    ids=str,
)
def test_pages_that_cannot_be(document: dict[str, Any], tensor: list[Any]) -> None:
    pages = document["pages"] | {"tensors": [tensor]}
    with pytest.raises(ArtifactError, match="run facts"):
        RunFacts.from_dict(document | {"pages": pages})


def test_what_is_kept_has_its_slots(document: dict[str, Any]) -> None:
    """Two for the newest. A pool of another size would be read beyond its end."""
    kept = ["pages.kept", "bfloat16", [2, 2, 2, 12, 2, 32]]
    pages = document["pages"] | {"keep": ["newest"]}
    whole = pages | {"tensors": [*pages["tensors"], kept]}
    facts = RunFacts.from_dict(document | {"pages": whole})
    assert facts.pages.kept_slots == 2 and facts.pages.text == "nvfp4 + newest kept"
    assert facts.page_table.kept_slots == 2
    with pytest.raises(ArtifactError, match=r"pages keep 0 chunks in pages\.kept, not 2"):
        RunFacts.from_dict(document | {"pages": pages})
    for keep in (["oldest"], "newest", [1]):
        with pytest.raises(ArtifactError, match="pages is"):
            RunFacts.from_dict(document | {"pages": whole | {"keep": keep}})


def test_sizes_follow_from_the_facts(compiled_nvfp4: Compiled) -> None:
    facts = compiled_nvfp4.facts
    assert facts.pixel_hw == (64, 96) and facts.torch_dtype == torch.bfloat16


def test_pages_are_counted_in_bytes() -> None:
    pages = PageSpec("x", 2, (("a", "uint8", (2, 3)), ("b", "float32", (5,))))
    assert pages.nbytes == 6 + 20
