"""What processes share: GPUs in turn, and calibrations that are made before they begin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.kv_study import arguments
from benchmarks.studies import KV, WEIGHTS
from benchmarks.study_jobs import calibrate_once, devices
from benchmarks.study_prompts import CALIBRATION_PROMPTS
from benchmarks.study_runs import Calibrations, Variant
from llvq.checkpoints.model import VideoModel


def test_jobs_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    on_gpus, on_cpu = (devices(arguments(["--device", name])) for name in ("cuda", "cpu"))
    assert [*islice(on_gpus, 3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [*islice(on_cpu, 2)] == ["cpu", "cpu"]


def test_each_calibration_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[Path, str | None]] = []

    def note(calibrations: Calibrations, model: VideoModel, variant: Variant) -> None:
        made.append((calibrations.folder, variant.calibrate))

    monkeypatch.setattr(Calibrations, "of", note)
    calibrate_once(KV, arguments([]), tmp_path / "kv")
    assert not made and not (tmp_path / "kv").exists()
    folder = tmp_path / "weights"
    calibrate_once(WEIGHTS, arguments([]), folder)
    assert made == [(folder, "modelopt:awq_lite"), (folder, "modelopt:svdquant")]
    assert (folder / CALIBRATION_PROMPTS).read_text().startswith("A ")


STUDY = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from benchmarks.study_jobs import begin_process

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), begin_process, (1,)) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_process_ends_with_the_study_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(STUDY)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as study:
        assert study.stdout is not None
        process = int(study.stdout.readline())
        study.terminate()
    deadline = time.monotonic() + 30
    while is_running(process):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for has ended, too.
    return " Z " not in Path(f"/proc/{process}/stat").read_text()
