from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from llvq import artifact
from llvq.artifact import BoxWriter, open_box
from llvq.errors import ArtifactError, OutputError

from .conftest import KNOWN_OPS, fields, fill, graph


def write(path: Path, *, overwrite: bool = False, **changes: Any) -> str:
    with BoxWriter(path, overwrite=overwrite) as writer:
        fill(writer)
        return writer.finish(fields(**changes))


def tree(path: Path) -> dict[str, bytes]:
    files = (p for p in sorted(path.rglob("*")) if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def test_the_same_inputs_give_the_same_bytes_and_id(tmp_path: Path) -> None:
    first = write(tmp_path / "a.llvq")
    turned = dict(reversed(fields().items()))
    with BoxWriter(tmp_path / "elsewhere.llvq") as writer:
        writer.add_tensors("weights/1.safetensors", {"v": torch.zeros(3, dtype=torch.uint8)})
        writer.add_tensors(
            "checks/add.safetensors", {"y": torch.full((2,), 2.0), "x": torch.ones(2)}
        )
        writer.add_tensors("weights/0.safetensors", {"w": torch.ones(4)[::2]})
        (writer.adopt("tokenizer") / "tokenizer.json").write_text("{}")
        (writer.adopt("report") / "report.md").write_text("fine")
        writer.add_json("graphs/add.json", graph())
        second = writer.finish(turned)
    assert first == second
    assert tree(tmp_path / "a.llvq") == tree(tmp_path / "elsewhere.llvq")


def test_another_input_gives_another_id_but_the_report_does_not(tmp_path: Path) -> None:
    first = write(tmp_path / "a.llvq")
    assert write(tmp_path / "b.llvq", recipe={"seed": 1}) != first
    with BoxWriter(tmp_path / "c.llvq") as writer:
        fill(writer)
        (writer.adopt("report") / "report.md").write_text("other words")
        assert writer.finish(fields()) == first


def test_the_id_is_the_sha256_of_the_manifest(tmp_path: Path) -> None:
    identity = write(tmp_path / "a.llvq")
    data = (tmp_path / "a.llvq" / "manifest.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == identity
    assert (tmp_path / "a.llvq" / "manifest.sha256").read_text() == f"{identity}  manifest.json\n"
    for word in (str(tmp_path), os.uname().nodename, str(os.getpid())):
        assert f'"{word}"'.encode() not in data
    assert identity.encode() not in data


def test_link_shares_the_file_or_copies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "tokenizer.json"
    source.write_text("words")
    with BoxWriter(tmp_path / "a.llvq") as writer:
        writer.link("tokenizer/tokenizer.json", source)
        writer.finish(fields())
    assert (tmp_path / "a.llvq/tokenizer/tokenizer.json").samefile(source)

    def no_links(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    with BoxWriter(tmp_path / "b.llvq") as writer:
        writer.link("tokenizer/tokenizer.json", source)
        writer.finish(fields())
    assert (tmp_path / "b.llvq/tokenizer/tokenizer.json").read_text() == "words"


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    for error in (RuntimeError("half way"), KeyboardInterrupt()):
        with pytest.raises(type(error)), BoxWriter(tmp_path / "a.llvq") as writer:
            fill(writer)
            raise error
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "a.llvq")
    assert len(str(caught.value).splitlines()) == 4
    assert "No space left" in str(caught.value) and "a.llvq" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_rename_that_fails_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OutputError, match="could not be written"):
        write(tmp_path / "a.llvq")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_parent_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        write(tmp_path / "none" / "a.llvq")


def test_errors_of_reading_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, BoxWriter(tmp_path / "a.llvq"):
        (tmp_path / "checkpoint").read_bytes()
    assert not isinstance(caught.value, OutputError)


def test_an_existing_box_is_kept_unless_asked(tmp_path: Path) -> None:
    first = write(tmp_path / "a.llvq")
    with pytest.raises(OutputError, match="there already"):
        write(tmp_path / "a.llvq")
    with pytest.raises(RuntimeError), BoxWriter(tmp_path / "a.llvq", overwrite=True):
        raise RuntimeError
    assert open_box(tmp_path / "a.llvq", known_ops=KNOWN_OPS).id == first
    second = write(tmp_path / "a.llvq", overwrite=True, model={"layers": 2})
    assert open_box(tmp_path / "a.llvq", known_ops=KNOWN_OPS).id == second
    assert [p.name for p in tmp_path.iterdir()] == ["a.llvq"]


def test_the_old_box_comes_back_if_the_new_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "a.llvq")
    rename = os.rename

    def refuse_new(source: Path, target: Path) -> None:
        if ".part-" in str(source):
            raise OSError(errno.EACCES, "Permission denied", str(source), None, str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_new)
    with pytest.raises(OutputError):
        write(tmp_path / "a.llvq", overwrite=True, model={})
    assert open_box(tmp_path / "a.llvq", known_ops=KNOWN_OPS).id == first
    assert [p.name for p in tmp_path.iterdir()] == ["a.llvq"]


def test_only_a_box_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="there already") as caught:
        write(tmp_path / "home", overwrite=True)
    assert "not a box" in str(caught.value)
    assert (tmp_path / "home" / "thesis.tex").exists()


@pytest.mark.parametrize(
    "changes",
    [{"kind": "bottle"}, {"target": None}, {"ops": {}}, {"extra": 1}, {"passes": {}}],
    ids=str,
)
def test_what_could_not_be_opened_is_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        write(tmp_path / "a.llvq", **changes)
    assert list(tmp_path.iterdir()) == []


def test_files_of_no_folder_of_the_format_are_a_mistake_of_ours(tmp_path: Path) -> None:
    for name in ("../x.json", "/x.json", "graphs/../../x.json", "x.json", "other/x.json"):
        with pytest.raises(AssertionError), BoxWriter(tmp_path / "a.llvq") as writer:
            writer.add_json(name, {})
    with pytest.raises(AssertionError, match="finish"), BoxWriter(tmp_path / "a.llvq"):
        pass


def test_the_module_says_its_version() -> None:
    assert artifact.FORMAT_VERSION == 1


def test_the_way_to_overwrite_is_named_as_it_is_typed(tmp_path: Path) -> None:
    write(tmp_path / "a.llvq")
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "a.llvq")
    assert "--force" in str(caught.value) and "overwrite=True" in str(caught.value)
