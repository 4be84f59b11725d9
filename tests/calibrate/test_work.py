"""The folder of a calibration: whole files, one run, and nothing of others removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llvq.calibrate.work import Work
from llvq.errors import OutputError, RecipeError

ONE = {"config": "max", "chunks": 3}


def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, dtype=torch.bfloat16)}
    Work(tmp_path / "w", ONE).put("phase-1", tensors, videos="2")
    found = Work(tmp_path / "w", ONE).get("phase-1")
    assert found is not None and found[1] == {"videos": "2"}
    assert all(torch.equal(found[0][name], value) for name, value in tensors.items())
    assert Work(tmp_path / "w", ONE).get("phase-2") is None
    assert not list((tmp_path / "w").glob(".*"))


def test_another_run_is_refused(tmp_path: Path) -> None:
    Work(tmp_path, ONE)
    with pytest.raises(RecipeError, match="another calibration was begun here") as caught:
        Work(tmp_path, {**ONE, "chunks": 4, "seed": 1})
    assert caught.value.because == "it differs in chunks, seed"
    assert "--force" in str(caught.value.fix)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_description_is_another_run(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(RecipeError, match="another calibration"):
        Work(tmp_path, ONE)


def test_force_removes_the_other_run_alone(tmp_path: Path) -> None:
    work = Work(tmp_path, ONE)
    work.put("phase-1", {"a": torch.ones(1)})
    work.write("calibration.safetensors", b"x")
    (tmp_path / "mine.txt").write_text("mine")
    again = Work(tmp_path, {"config": "mse"}, force=True)
    assert again.get("phase-1") is None and not again.facts.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "run.json"]


def test_force_resumes_the_same_run(tmp_path: Path) -> None:
    Work(tmp_path, ONE).put("phase-1", {"a": torch.ones(1)})
    assert Work(tmp_path, ONE, force=True).get("phase-1") is not None


def test_half_a_file_is_none(tmp_path: Path) -> None:
    work = Work(tmp_path, ONE)
    work.put("phase-1", {"a": torch.ones(100)})
    path = tmp_path / "state-phase-1.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert work.get("phase-1") is None


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        Work(tmp_path / "w", ONE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    work = Work(tmp_path, ONE)
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        work.put("phase-1", {"a": torch.ones(1)})


def test_a_folder_that_went_away(tmp_path: Path) -> None:
    work = Work(tmp_path / "w", ONE)
    (tmp_path / "w" / "run.json").unlink()
    (tmp_path / "w").rmdir()
    with pytest.raises(OutputError, match="cannot be written"):
        work.put("phase-1", {"a": torch.ones(1)})
