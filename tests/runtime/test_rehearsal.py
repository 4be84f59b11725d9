"""What a box takes of a machine is known, and refused, before a weight is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llvq.artifact import Box
from llvq.backends.base import CPU
from llvq.box import export_box, write_program
from llvq.compiler import Compiled
from llvq.errors import ArtifactError
from llvq.graphs.weight_groups import Limits, slot_bytes
from llvq.models.config import ModelConfig
from llvq.runtime import rehearsal
from llvq.runtime.load import executable, open_checked
from llvq.runtime.rehearsal import Rehearsed, rehearse, weights_to_stream
from llvq.sources import DictSource

SMALL = Limits(sizes=(2**13,), smallest=256)


@pytest.fixture(scope="module")
def box(
    compiled_nvfp4: Compiled,
    tiny_config: ModelConfig,
    make_weights: Callable[[ModelConfig], DictSource],
    tmp_path_factory: pytest.TempPathFactory,
) -> Box:
    folder = tmp_path_factory.mktemp("rehearsal")
    write_program(compiled_nvfp4, make_weights(tiny_config), folder / "m.nvfp4")
    export_box(open_checked(folder / "m.nvfp4"), CPU, folder / "m.llvq")
    return open_checked(folder / "m.llvq")


def all_of(box: Box) -> dict[str, Rehearsed]:
    return {name: rehearse(box, name, box.graph(name), "cpu") for name in box.manifest["stages"]}


def test_a_stage_is_told_by_its_workspace_and_inputs(box: Box) -> None:
    stage = all_of(box)["denoise"]
    pages = sum(size for name, size in stage.inputs.items() if name.startswith("pages"))
    assert stage.workspace > 0
    assert pages == executable(box, "cpu").facts.pages.nbytes


def test_groups_are_of_every_stage_that_shares_slots(box: Box) -> None:
    groups = weights_to_stream(box, all_of(box), "cpu", SMALL)
    assert groups.keys() == box.manifest["stages"].keys()
    assert groups["denoise"] and slot_bytes(groups) <= 2**13


def needed(box: Box, monkeypatch: pytest.MonkeyPatch, memory: int) -> str:
    """What is said where a machine has so much."""
    monkeypatch.setattr(rehearsal, "memory_of", lambda _: memory)
    with pytest.raises(ArtifactError) as caught:
        weights_to_stream(box, all_of(box), "cpu", SMALL)
    return str(caught.value)


def test_a_stage_that_does_not_fit_is_named(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    said = needed(box, monkeypatch, 100)
    assert "does not fit into memory" in said and "stage " in said and "--height" in said


def test_what_does_not_fit_with_weights_on_the_host_is_refused(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = all_of(box)
    largest = max(stage.workspace + sum(stage.inputs.values()) for stage in stages.values())
    said = needed(box, monkeypatch, largest)
    assert "the box does not fit into memory" in said
    assert "with its weights on the host" in said and "fewer bits" in said
    monkeypatch.setattr(rehearsal, "memory_of", lambda _: 10 * largest)
    assert weights_to_stream(box, all_of(box), "cpu", SMALL)["denoise"]
