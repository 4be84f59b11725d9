"""A random box, and a cold start of it: every second of a process belongs to a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cold_start, random_box
from llvq.backends.base import CPU
from llvq.models.config import ModelConfig
from llvq.runtime.load import open_runnable


@pytest.fixture(scope="module")
def path(whole_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("random") / "small.llvq"
    random_box.write_random_box(target, whole_config, CPU)
    return target


def test_a_random_box_is_a_box_without_text_encoder_and_checks(path: Path) -> None:
    box = open_runnable(path)
    assert box.manifest["kind"] == "box" and "encode_text" not in box.manifest["stages"]
    assert box.manifest["unchecked"].keys() == box.manifest["stages"].keys()
    assert sorted(p.name for p in path.parent.iterdir()) == ["small.llvq"]


@pytest.fixture(scope="module")
def document(path: Path) -> dict[str, object]:
    out = path.parent / "out"
    assert cold_start.main([str(path), "--runs", "1", "--out", str(out), "--name", "mine"]) == 0
    return json.loads((out / "mine.json").read_text())


def test_steps_add_up_to_the_life_of_the_process(document: dict[str, object]) -> None:
    (run,) = document["runs"]  # type: ignore[misc]
    steps = run["steps"]
    for step in ("import torch and llvq", "open and hash the box", "read and fold weights",
                 "first condition", "first chunk, decoded"):  # fmt: skip
        assert steps[step] > 0
    assert sum(steps.values()) == pytest.approx(run["total"], abs=1.0)
    assert run["frames"] == 5 and run["target"] == "cpu"


def test_the_table_has_a_column_for_each_run(document: dict[str, object]) -> None:
    text = cold_start.text_of({**document, "runs": document["runs"] * 2})  # type: ignore[operator]
    assert "run 1     run 2" in text and "process start to first chunk" in text


def test_a_box_that_does_not_load_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(cold_start.subprocess.CalledProcessError):
        cold_start.main([str(tmp_path / "nowhere.llvq")])
    assert "nowhere.llvq" in capsys.readouterr().err
