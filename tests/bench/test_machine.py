"""What the machine is, here and with a GPU as nvidia-smi would tell of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llvq.bench import machine

CPU = torch.device("cpu")
UUID = "5f2b1c3e-0000-4a5b-9c7d-112233445566"
ROWS = (
    "GPU-00000000-0000-0000-0000-000000000000, Other, 1, 2 MHz, 3 MHz, 4 MHz, 5 W, 6\n"
    f"GPU-{UUID}, NVIDIA H100 80GB HBM3, 580.1, 1755 MHz, 1980 MHz, 2619 MHz, 700.00 W, 41\n"
)


def test_versions_are_those_that_decide_a_number() -> None:
    found = machine.versions()
    assert {"llvq", "torch", "python"} <= found.keys()
    assert found["torch"] == torch.__version__


def test_a_cpu_has_a_name_a_peak_and_no_clocks() -> None:
    assert machine.device_text(CPU).startswith("cpu (")
    machine.reset_peak_memory(CPU)
    peak = machine.peak_memory(CPU)
    assert int(peak["bytes"]) > 2**20 and peak["of"] == "this process (RSS)"
    assert machine.gpu_state(CPU) == {}


def test_the_row_of_this_gpu_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout=ROWS)

    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=UUID)
    )
    state = machine.gpu_state(torch.device("cuda", 0))
    assert state["name"] == "NVIDIA H100 80GB HBM3" and state["clocks.sm"] == "1755 MHz"
    assert state["temperature.gpu"] == "41" and state.keys() == set(machine.QUERIES)
    assert all(word.startswith(("--query-gpu=", "--format=")) for word in asked[0][1:])


def test_no_row_no_state() -> None:
    assert machine._row_of("", UUID) == machine._row_of(ROWS, "another") == {}
