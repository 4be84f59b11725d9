from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from llvq.checkpoints import torch_file
from llvq.checkpoints.torch_file import TorchSource
from llvq.errors import CheckpointError


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo code ran",)


def test_nested_dicts_become_dotted_names_and_scalars_metadata(tmp_path: Path) -> None:
    weights = {"model.a": torch.zeros(2)}
    content = {"generator": weights, "step": 3, "odd": {"state": {0: torch.ones(1)}, "list": [1]}}
    torch.save(content, tmp_path / "x.pt")
    source = TorchSource(tmp_path / "x.pt")
    assert source.names() == ("generator.model.a",)
    assert source.metadata == {"step": 3}


def test_a_zip_file_is_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **kw: asked.update(kw) or load(path, **kw))
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    TorchSource(tmp_path / "x.pt")
    assert asked == {"map_location": "cpu", "weights_only": True, "mmap": True}


def test_views_are_read_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base.T, "b": torch.nn.Parameter(base[1:])}, tmp_path / "x.pt")
    source = TorchSource(tmp_path / "x.pt")
    assert torch.equal(source.read("a"), base.T) and source.read("a").is_contiguous()
    assert torch.equal(source.read("b"), base[1:]) and not source.read("b").requires_grad


def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.zeros(2), "evil": RunsCode()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="besides tensors") as caught:
        TorchSource(tmp_path / "x.pt")
    assert len(str(caught.value).splitlines()) == 4
    assert "posix.system" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "code ran" not in capfd.readouterr().out


def test_a_legacy_file_is_read_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(TorchSource(path).read("a"), torch.ones(3))
    monkeypatch.setattr(torch_file, "LEGACY_LIMIT_BYTES", 10)
    with pytest.raises(CheckpointError, match=r"before 1\.6") as caught:
        TorchSource(path)
    assert caught.value.fix is not None and "old.pt'" in caught.value.fix


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        TorchSource(path)


@pytest.mark.parametrize("content", [{}, [torch.zeros(1)], torch.zeros(1), {"step": 1}])
def test_no_named_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no named tensors"):
        TorchSource(tmp_path / "x.pt")


def test_one_name_twice(tmp_path: Path) -> None:
    torch.save({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"a\.b is not a plain tensor, or is there twice"):
        TorchSource(tmp_path / "x.pt")


def test_a_file_is_mapped_anew_after_some_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_file, "REMAP_BYTES", 100)
    values = torch.arange(64.0).reshape(8, 8)
    torch.save({"a": values, "t": values.T}, tmp_path / "x.pt")
    source = TorchSource(tmp_path / "x.pt")
    kept = source.read_rows("a", 0, 4)
    for name, expected in (("a", values), ("t", values.T)):
        rows = [source.read_rows(name, i, i + 2) for i in range(0, 8, 2)]
        assert torch.equal(torch.cat(rows), expected) and rows[0].is_contiguous()
    assert torch.equal(kept, values[:4])


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_file, "REMAP_BYTES", 1)
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pt")
    source = TorchSource(tmp_path / "x.pt")
    torch.save({"b": torch.ones(3)}, tmp_path / "y.pt")
    (tmp_path / "y.pt").replace(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        source.read("a")


@pytest.mark.parametrize("content", [b"hello\n" * 9, b"\xff\xd8\xff\xe0 JFIF", b"{}"])
def test_what_never_was_a_checkpoint_is_told_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a torch checkpoint") as caught:
        TorchSource(tmp_path / "x.pt")
    assert "neither a zip archive nor a pickle" in str(caught.value)


def test_what_an_optimizer_keeps_is_not_named(tmp_path: Path) -> None:
    moments = {"state": {"model.a": {"exp_avg": torch.zeros(2), "step": torch.zeros(())}}}
    content = {"generator": {"a": torch.zeros(2)}, "generator_optimizer": moments, "step": 7}
    torch.save(content | {"optimizer": moments}, tmp_path / "x.pt")
    source = TorchSource(tmp_path / "x.pt")
    assert source.names() == ("generator.a",) and source.metadata == {"step": 7}


def test_a_tensor_that_is_expanded_from_few_bytes(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**9, 10**6)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="declares more than it can hold") as caught:
        TorchSource(tmp_path / "x.pt")
    assert "a has 4000000000000000 bytes" in str(caught.value)


def test_dicts_that_multiply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 dicts, each twice in the next: 2**40 names in a kilobyte."""
    monkeypatch.setattr(torch_file, "MAX_NAMES", 10_000)
    content: dict[str, object] = {"a": torch.zeros(1)}
    for _ in range(40):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="declares more than it can hold"):
        TorchSource(tmp_path / "x.pt")


def test_a_dict_in_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {"a": torch.zeros(1)}
    content["b"] = content
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        TorchSource(tmp_path / "x.pt")


def test_a_compressed_archive(tmp_path: Path) -> None:
    """A kilobyte of it could unpack to a gigabyte of pickle."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as stored,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(CheckpointError, match=r"not an archive as torch\.save writes it"):
        TorchSource(tmp_path / "y.pt")
