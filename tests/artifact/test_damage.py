"""Every way we could think of to damage a box; each is refused by one sentence that names it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llvq.artifact.manifest import MAX_MANIFEST_BYTES, MAX_STAGES

from .conftest import OP, put, refused, rewrite

FILES = [
    "graphs/add.json",
    "weights/0.safetensors",
    "weights/1.safetensors",
    "checks/add.safetensors",
    "tokenizer/tokenizer.json",
    "manifest.json",
    "manifest.sha256",
]


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(box_path: Path, name: str) -> None:
    data = (box_path / name).read_bytes()
    (box_path / name).write_bytes(data[:-1])
    assert name.removesuffix(".sha256") in refused(box_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(box_path: Path, name: str) -> None:
    (box_path / name).unlink()
    assert name in refused(box_path)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte(box_path: Path, name: str) -> None:
    data = bytearray((box_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (box_path / name).write_bytes(data)
    assert name.removesuffix(".sha256") in refused(box_path)


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_flipped_byte(box_path: Path, data: st.DataObject) -> None:
    path = box_path / data.draw(st.sampled_from(FILES))
    intact = path.read_bytes()
    place = data.draw(st.integers(0, len(intact) - 1))
    changed = bytearray(intact)
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        refused(box_path)
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("name", [n for n in FILES if not n.startswith("manifest")])
def test_a_link_in_place_of_a_file(box_path: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    shutil.move(box_path / name, outside)
    (box_path / name).symlink_to(outside)
    assert f"{name!r} is a link" in refused(box_path)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_a_link_in_place_of_the_manifest(box_path: Path, tmp_path: Path, name: str) -> None:
    shutil.move(box_path / name, tmp_path / "outside")
    (box_path / name).symlink_to(tmp_path / "outside")
    assert "manifest.json" in refused(box_path)


def test_a_link_in_place_of_a_folder(box_path: Path, tmp_path: Path) -> None:
    shutil.move(box_path / "weights", tmp_path / "outside")
    (box_path / "weights").symlink_to(tmp_path / "outside")
    assert "'weights' is a link" in refused(box_path)


@pytest.mark.parametrize("name", ["graphs/more.json", "weights/x", "run.py", "kernels/sm/a.cubin"])
def test_a_surplus_file(box_path: Path, name: str) -> None:
    (box_path / name).parent.mkdir(parents=True, exist_ok=True)
    (box_path / name).write_text("{}")
    assert name in refused(box_path)


def listed(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda m: m["files"].update({name: {"bytes": 0, "sha256": "0" * 64}})


def in_file(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda m: m["files"]["graphs/add.json"].update(changes)


def stages(count: int) -> dict[str, Any]:
    return {str(i): {} for i in range(count)}


def left_out_and_in(manifest: dict[str, Any]) -> None:
    manifest["stages"]["encode_text"] = {}
    manifest["left_out"]["encode_text"] = "0" * 64


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format version": (put(format={"name": "llvq-box", "version": 2}), "format version 2"),
    "format field": (put(format={"name": "llvq-box", "version": 1, "x": 1}), "format version"),
    "format name": (put(format={"name": "zip", "version": 1}), "not a box of llvq"),
    "no format": (lambda m: m.pop("format"), "not a box of llvq"),
    "kind": (put(kind="bottle"), "'bottle'"),
    "kind type": (put(kind=[]), "field 'kind' is a list"),
    "no target": (put(target=None), "has a target"),
    "other target": (put(target="sm_120a"), "for target sm_120a"),
    "torch too new": (put(versions={"torch": ">=9.0,<9.1", "llvq": "1"}), ">=9.0,<9.1"),
    "torch too old": (put(versions={"torch": ">=1.0,<1.9", "llvq": "1"}), ">=1.0,<1.9"),
    "torch no range": (put(versions={"torch": "any", "llvq": "1"}), "versions.torch"),
    "torch no string": (put(versions={"torch": 2.13, "llvq": "1"}), "field 'versions'"),
    "no llvq version": (put(versions={"torch": ">=2.11,<2.99"}), "versions.llvq"),
    "unknown op": (put(ops={"llvq.magic.default": "x"}), "llvq.magic.default is unknown"),
    "changed schema": (put(ops={OP: "aten::add.Tensor(Tensor x)"}), f"{OP} has changed"),
    "op no string": (put(ops={OP: 1}), "field 'ops'"),
    "unlisted op": (put(ops={}), "calls aten.add.Tensor"),
    "stages": (put(stages=stages(MAX_STAGES + 1)), f"{MAX_STAGES + 1} stages"),
    "stages type": (put(stages=[1]), "field 'stages' is a list"),
    "stage type": (put(stages={"a": 1}), "field 'stages'"),
    "left out": (put(left_out={"add": "0" * 64}), "stage 'add' cannot be left out"),
    "left out and in": (left_out_and_in, "'encode_text' cannot be left out"),
    "left out as": (put(left_out={"encode_text": "0" * 63}), "left_out.encode_text is no sha256"),
    "left out type": (put(left_out={"encode_text": 1}), "left_out.encode_text is no sha256"),
    "passes type": (put(passes={}), "field 'passes' is a dict"),
    "missing field": (lambda m: m.pop("recipe"), "field 'recipe' is missing"),
    "surplus field": (put(startup="import os"), "field 'startup' is unknown"),
    "files type": (put(files=[]), "field 'files' is a list"),
    "file entry": (put(files={"graphs/add.json": "x"}), "graphs/add.json"),
    "file field": (in_file(mode=1), "graphs/add.json"),
    "file sha type": (in_file(sha256=1), "graphs/add.json"),
    "file sha": (in_file(sha256="0" * 64), "graphs/add.json is damaged"),
    "file size": (in_file(bytes=3), "graphs/add.json has"),
    "file size bool": (in_file(bytes=True), "graphs/add.json"),
    "file size negative": (in_file(bytes=-1), "graphs/add.json"),
    "listed but missing": (listed("weights/9.safetensors"), "weights/9.safetensors"),
    "path up": (listed("graphs/../../x"), "graphs/../../x"),
    "path up first": (listed("../x"), "../x"),
    "path absolute": (listed("/etc/passwd"), "/etc/passwd"),
    "path backslash": (listed("graphs\\..\\x"), "graphs"),
    "path no folder": (listed("run.py"), "run.py"),
    "path report": (listed("report/report.md"), "report/report.md"),
    "not listed": (lambda m: m["files"].pop("checks/add.safetensors"), "checks/add.safetensors"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_manifest(
    box_path: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    rewrite(box_path, change)
    assert says in refused(box_path, kinds=("box",), targets=("sm_100a", "cpu"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b'"x"',
        b"\xff\xfe",
        b'{"format":NaN}',
        b'{"a":1,"a":2}',
        b'{"a":' + b"[" * 100_000,
        b"PK\x03\x04",
        b"9" * 5000,
        b'{"format":"llvq-box"}',
    ],
    ids=range(13),
)
def test_a_manifest_that_is_none(box_path: Path, text: bytes) -> None:
    (box_path / "manifest.json").write_bytes(text)
    assert "llvq" in refused(box_path)


def test_a_huge_manifest_is_not_read(box_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(box_path / "manifest.json", MAX_MANIFEST_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    assert str(MAX_MANIFEST_BYTES) in refused(box_path)


def test_no_box_at_all(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.llvq")
    (tmp_path / "file").write_text("x")
    assert "cannot be read" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "manifest.json" in refused(tmp_path / "empty")
