"""A small box, and how to change one so that its manifest still fits its seal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llvq import canonical_json, graphs
from llvq.artifact import BoxWriter, open_box
from llvq.artifact.manifest import MANIFEST, SEAL, seal
from llvq.errors import ArtifactError

OP = "aten.add.Tensor"
SCHEMA = "aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"
KNOWN_OPS = {OP: SCHEMA}


def fields(**changes: Any) -> dict[str, Any]:
    base = {
        "kind": "box",
        "target": "sm_100a",
        "numerics": "w4a4",
        "versions": {"torch": ">=2.11,<2.99", "llvq": "0.1.0"},
        "ops": dict(KNOWN_OPS),
        "contract": {"x": ["float32", [2]]},
        "state": {},
        "stages": {"add": {"graph": "add"}},
        "recipe": {"seed": 0},
        "passes": [{"name": "canonicalize", "hits": 3}],
        "unchecked": {},
        "left_out": {},
        "implementations": {},
        "kernels": None,
        "calibration": None,
        "lora": [],
        "weights": {"q": {"op": "copy", "sources": ["q"]}},
        "model": {"layers": 1},
    }
    return base | changes


def graph(target: str = OP) -> dict[str, Any]:
    def node(name: str, op: str, target: str, *args: Any) -> dict[str, Any]:
        record = {"name": name, "op": op, "target": target, "args": list(args), "kwargs": {}}
        spec = None if op == "output" else {"tensor": ["float32", [2]]}
        return record | {"val": spec, "module": "", "source": "", "llvq": None}

    return {
        "nodes": [
            node("w", "get_attr", "w"),
            node("x", "placeholder", "x"),
            node("add", "call_function", target, {"node": "x"}, {"node": "w"}),
            node("output", "output", "output", {"node": "add"}),
        ]
    }


def fill(writer: BoxWriter) -> None:
    writer.add_json("graphs/add.json", graph())
    writer.add_tensors("weights/0.safetensors", {"w": torch.ones(2)})
    writer.add_tensors("weights/1.safetensors", {"v": torch.zeros(3, dtype=torch.uint8)})
    writer.add_tensors("checks/add.safetensors", {"x": torch.ones(2), "y": torch.full((2,), 2.0)})
    (writer.adopt("tokenizer") / "tokenizer.json").write_text("{}")
    (writer.adopt("report") / "report.md").write_text("fine")


@pytest.fixture
def box_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.llvq"
    with BoxWriter(path) as writer:
        fill(writer)
        writer.finish(fields())
    return path


@pytest.fixture(autouse=True)
def no_graph_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused is refused before a graph is built, in every test of this folder."""

    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("a graph was built")

    monkeypatch.setattr(graphs, "load", fail)
    monkeypatch.setattr(torch.fx.Graph, "create_node", fail)


@pytest.fixture
def known_ops() -> dict[str, str]:
    return dict(KNOWN_OPS)


def put(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """A change for `rewrite`: fields of the manifest."""
    return lambda manifest: manifest.update(changes)


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and seal it again: damage that is not a flipped bit."""
    manifest = canonical_json.loads((path / MANIFEST).read_bytes())
    change(manifest)
    data = canonical_json.dumps(manifest)
    (path / MANIFEST).write_bytes(data)
    (path / SEAL).write_bytes(seal(data))


def refused(path: Path, **options: Any) -> str:
    """The message of the one error that opening the box ends in."""
    with pytest.raises(ArtifactError) as caught:
        open_box(path, **{"known_ops": KNOWN_OPS} | options)
    assert type(caught.value) is ArtifactError
    assert caught.value.where and caught.value.fix
    return str(caught.value)
