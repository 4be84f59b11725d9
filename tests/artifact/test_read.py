from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from llvq import canonical_json
from llvq.artifact import Box, BoxWriter, open_box
from llvq.errors import ArtifactError

from .conftest import KNOWN_OPS, fields, fill, graph, put, refused, rewrite


def test_an_intact_box_opens(box_path: Path, known_ops: dict[str, str]) -> None:
    box = open_box(box_path, known_ops=known_ops, kinds=("box",), targets=("cpu", "sm_100a"))
    assert isinstance(box, Box) and len(box.id) == 64
    assert box.manifest["target"] == "sm_100a"
    assert box.graph("add") == graph()
    assert box.file("tokenizer/tokenizer.json").read_text() == "{}"
    with pytest.raises(ArtifactError, match=r"no file 'report/report\.md'"):
        box.file("report/report.md")
    with pytest.raises(ArtifactError, match=r"no file 'graphs/\.\./manifest\.json'"):
        box.graph("../manifest")


def test_tensors_are_read_from_every_file(box_path: Path, known_ops: dict[str, str]) -> None:
    tensors = open_box(box_path, known_ops=known_ops).tensors()
    assert sorted(tensors) == ["v", "w"] and len(tensors) == 2
    assert torch.equal(tensors["w"], torch.ones(2))
    assert tensors["v"].dtype == torch.uint8
    with pytest.raises(KeyError):
        tensors["u"]


def test_files_are_found_by_the_weights_they_hold(
    box_path: Path, known_ops: dict[str, str]
) -> None:
    box = open_box(box_path, known_ops=known_ops)
    assert box.weight_files({"w"}) == ["weights/0.safetensors"]
    assert box.weight_files({"w", "v", "u"}) == ["weights/0.safetensors", "weights/1.safetensors"]
    assert box.weight_files({"u"}) == []


def test_a_tensor_in_two_files_is_refused(tmp_path: Path, known_ops: dict[str, str]) -> None:
    with BoxWriter(tmp_path / "a.llvq") as writer:
        fill(writer)
        writer.add_tensors("weights/2.safetensors", {"w": torch.ones(1)})
        writer.finish(fields())
    with pytest.raises(ArtifactError, match="tensor w is in two files"):
        open_box(tmp_path / "a.llvq", known_ops=known_ops).tensors()


def test_the_report_is_not_part_of_it(box_path: Path, known_ops: dict[str, str]) -> None:
    before = open_box(box_path, known_ops=known_ops).id
    (box_path / "report" / "report.md").write_text("other")
    (box_path / "report" / "more.md").write_text("more")
    assert open_box(box_path, known_ops=known_ops).id == before


def test_a_program_is_not_a_box(tmp_path: Path, known_ops: dict[str, str]) -> None:
    with BoxWriter(tmp_path / "p.llvq") as writer:
        fill(writer)
        writer.finish(fields(kind="program", target=None, numerics=None))
    assert "llvq export" in refused(tmp_path / "p.llvq", kinds=("box",))
    assert open_box(tmp_path / "p.llvq", known_ops=known_ops, targets=("cpu",)).id


def write_graph(path: Path, data: bytes) -> None:
    """Put other bytes in place of the graph, and make the manifest fit them."""
    (path / "graphs" / "add.json").write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(path, lambda m: m["files"].update({"graphs/add.json": entry}))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "graphs/add.json is not JSON"),
        (b"{}", "graphs/add.json: the graph is not a list of nodes"),
        (b'{"nodes":[3]}', "node #0"),
        (canonical_json.dumps(graph("os.system")), "os.system"),
        (canonical_json.dumps(graph("operator.attrgetter")), "operator.attrgetter"),
        (canonical_json.dumps(graph("aten.mul.Tensor")), "aten.mul.Tensor"),
    ],
)
def test_a_graph_that_may_not_be(box_path: Path, data: bytes, says: str) -> None:
    write_graph(box_path, data)
    assert says in refused(box_path)


def test_unhashed_weights_are_checked_by_size(box_path: Path, known_ops: dict[str, str]) -> None:
    path = box_path / "weights" / "0.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x01")
    assert "weights/0.safetensors is damaged" in refused(box_path)
    assert open_box(box_path, known_ops=known_ops, hash_weights=False).tensors()["w"][1] != 1.0
    path.write_bytes(b"\xff" * len(data))
    box = open_box(box_path, known_ops=known_ops, hash_weights=False)
    with pytest.raises(ArtifactError, match=r"0\.safetensors is no safetensors file"):
        box.tensors()
    path.write_bytes(data[:-1])
    assert "weights/0.safetensors has" in refused(box_path, hash_weights=False)


def test_checks_come_in_order(box_path: Path) -> None:
    """Each damage is undone in the documented order; the first that is left is the one named."""
    options = {"kinds": ("box",), "targets": ("cpu",), "known_ops": {}}
    (box_path / "graphs" / "add.json").write_bytes(
        b"x" * (box_path / "graphs/add.json").stat().st_size
    )
    (box_path / "extra").touch()
    good = {"format": {"name": "llvq-box", "version": 1}}
    versions = {"torch": ">=9.0,<9.1", "llvq": "0.1.0"}
    rewrite(box_path, put(format={"name": "llvq-box", "version": 7}, versions=versions))
    assert "format version" in refused(box_path, **options)
    rewrite(box_path, put(**good))
    assert "for target" in refused(box_path, **options)
    options["targets"] = ("sm_100a",)
    assert "needs torch" in refused(box_path, **options)
    rewrite(box_path, put(versions={"torch": ">=2.11,<2.99", "llvq": "0.1.0"}))
    assert "is unknown" in refused(box_path, **options)
    options["known_ops"] = KNOWN_OPS
    assert "not of the box" in refused(box_path, **options)
    (box_path / "extra").unlink()
    assert "graphs/add.json is damaged" in refused(box_path, **options)
