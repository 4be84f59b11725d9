"""A box becomes an executable: which boxes, and what its stages share. On whole boxes: test_box."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llvq import graphs
from llvq.backends.base import CPU
from llvq.box import export_box, write_program
from llvq.compiler import Compiled
from llvq.errors import ArtifactError
from llvq.models.config import ModelConfig
from llvq.runtime.load import load, op_table, open_checked
from llvq.sources import DictSource


@pytest.fixture(scope="module")
def folder(
    compiled_nvfp4: Compiled,
    tiny_config: ModelConfig,
    make_weights: Callable[[ModelConfig], DictSource],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny model as a program m.nvfp4 and a box m.llvq."""
    path = tmp_path_factory.mktemp("load")
    write_program(compiled_nvfp4, make_weights(tiny_config), path / "m.nvfp4")
    export_box(open_checked(path / "m.nvfp4"), CPU, path / "m.llvq")
    return path


def test_a_box_has_every_stage_of_its_model(folder: Path, compiled_nvfp4: Compiled) -> None:
    model = load(folder / "m.llvq")
    assert model.facts == compiled_nvfp4.facts and model.device == torch.device("cpu")
    for name, stage in compiled_nvfp4.stages.items():
        assert (model.stage(name).inputs, model.stage(name).outputs) == (
            stage.inputs,
            stage.outputs,
        )


def test_a_weight_that_stages_share_is_loaded_once(folder: Path) -> None:
    model = load(folder / "m.llvq")
    held = {name: dict(stage.graph.named_buffers()) for name, stage in model.stages.items()}
    shared = held["denoise"].keys() & held["refresh"].keys()
    assert any(name.endswith(".codes") for name in shared)
    for name in shared:
        assert held["denoise"][name].data_ptr() == held["refresh"][name].data_ptr()


def test_only_a_box_is_loaded(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="this is a program, not a box") as caught:
        load(folder / "m.nvfp4")
    assert "llvq export" in str(caught.value)


def test_a_damaged_weight_is_found_unless_nobody_looks(folder: Path) -> None:
    """Only looking at a box (`llvq inspect`) does without the hashes."""
    file = next((folder / "m.llvq").glob("weights/*.safetensors"))
    data = file.read_bytes()
    file.unlink()  # the program shares the file
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=file.name):
        open_checked(folder / "m.llvq")
    open_checked(folder / "m.llvq", hash_weights=False)
    open_checked(folder / "m.nvfp4")
    file.write_bytes(data)


def test_schemas_count_for_our_ops_alone() -> None:
    found = op_table(["aten.linear.default", "llvq.rope.default"])
    assert found == {
        "aten.linear.default": "aten",
        "llvq.rope.default": graphs.schema("llvq.rope.default"),
    }
    assert found.items() <= op_table().items()
