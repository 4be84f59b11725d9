"""A box becomes an executable: which boxes, what its stages share, and that
graphs and weights are what they say. On whole boxes: test_box."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save

from llvq import graphs
from llvq.backends.base import CPU
from llvq.box import export_box, write_program
from llvq.compiler import Compiled
from llvq.errors import ArtifactError
from llvq.models.config import ModelConfig
from llvq.runtime import load as loading
from llvq.runtime.load import executable, executable_on_two, load, op_table, open_checked
from llvq.sources import DictSource

if TYPE_CHECKING:
    from .conftest import Forger

SHARD = "weights/weights-00001.safetensors"


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


def test_stages_are_built_apart(folder: Path) -> None:
    box = open_checked(folder / "m.llvq")
    assert set(executable(box, "cpu", stages=("modulate",)).stages) == {"modulate"}
    assert set(executable(box, "cpu").stages) == set(box.manifest["stages"])


def test_a_weight_is_missed_whatever_is_built(forger: Forger) -> None:
    name = with_weights(forger, "surplus")
    with pytest.raises(ArtifactError, match="do not fit") as caught:
        executable(open_checked(forger.path), "cpu", stages=("modulate",))
    assert f"weight {name} is read by no graph" in str(caught.value)


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


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load(path)
    assert str(caught.value).count("\n") == 3 and str(path) in str(caught.value)
    return str(caught.value)


def call(target: str, *args: Any, val: Any) -> dict[str, Any]:
    node = {"name": "evil", "op": "call_function", "target": target, "args": list(args)}
    return {**node, "kwargs": {}, "val": val, "module": "", "source": "", "llvq": None}


def with_weights(forger: Forger, change: str) -> str:
    """The name of the weight that was changed."""
    tensors = {name: t.clone() for name, t in load_file(forger.path / SHARD).items()}
    name = min(name for name in tensors if name.endswith("bias"))
    if change == "missing":
        del tensors[name]
    elif change == "surplus":
        tensors["more"] = torch.zeros(2)
    elif change == "misshapen":
        tensors[name] = torch.zeros(3)
    forger.file(SHARD, save(tensors))
    return "more" if change == "surplus" else name


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("missing", "is in no file"),
        ("surplus", "is read by no graph"),
        ("misshapen", "is torch.float32 [3]"),
    ],
)
def test_weights_that_are_not_of_the_graphs(forger: Forger, change: str, problem: str) -> None:
    name = with_weights(forger, change)
    text = refused(forger.path)
    assert problem in text and name in text


def test_a_graph_that_would_fill_any_memory(forger: Forger) -> None:
    bomb = call("aten.zeros.default", [2**44], val={"tensor": ["float32", [2**44]]})
    forger.graph("modulate", lambda nodes: nodes.insert(len(nodes) - 1, bomb))
    assert "stage modulate does not fit into memory" in refused(forger.path)


def test_a_graph_that_hides_what_it_would_fill(forger: Forger) -> None:
    bomb = call("aten.zeros.default", [2**44], val={"tensor": ["float32", [1]]})
    forger.graph("modulate", lambda nodes: nodes.insert(len(nodes) - 1, bomb))
    assert "it gives float32 [17592186044416], and is recorded as float32 [1]" in refused(
        forger.path
    )


def test_a_graph_that_multiplies_text(forger: Forger) -> None:
    bomb = call("operator.mul", "x", 2**44, val=None)
    forger.graph("modulate", lambda nodes: nodes.insert(len(nodes) - 1, bomb))
    assert "it takes numbers" in refused(forger.path)


def test_a_graph_that_writes_files(forger: Forger) -> None:
    save_it = call("aten.save.default", [], "stolen", val=None)
    forger.graph("modulate", lambda nodes: nodes.insert(len(nodes) - 1, save_it))
    assert "aten.save.default is unknown" in refused(forger.path)


def test_stages_that_decode_may_lie_elsewhere(
    honest_box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their weights, and no others."""
    box, held = open_checked(honest_box), list[set[str]]()
    attach = loading.attach_weights

    def attached(built: Any, *args: Any) -> None:
        attach(built, *args)
        held.append(set().union(*(graphs.weights(gm) for gm in built.values())))

    monkeypatch.setattr(loading, "attach_weights", attached)
    stages = box.manifest["stages"].keys() - {"encode_text"}
    model = executable_on_two(box, "cpu", "cpu", stages=stages)
    assert model.stages.keys() == stages and model.decode_device == torch.device("cpu")
    others, decoder = held
    read = {name for name in decoder if not name.startswith("folded_")}  # once, when it was loaded
    assert read and not [n for n in read if not n.startswith("vae.") or ".encoder." in n]
    assert not [name for name in others if name.startswith("vae.decoder.")]
