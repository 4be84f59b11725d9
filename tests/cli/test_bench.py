"""`llvq bench`: tables, JSON, and the warning where four bits do not pay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import Result

from llvq.bench.linears import LinearTime
from llvq.bench.run import EndToEnd, Report
from llvq.bench.stages import StageTime
from llvq.bench.timing import Spread
from llvq.cli.bench import SLOWER, show
from tests.cli.conftest import Typed

Invoke = Callable[..., Result]


def test_a_box_is_measured_where_it_runs(invoke: Invoke, box: Typed) -> None:
    result = invoke("bench", box.path, "--chunks", "1", "--steps", "1", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["target"] == "cpu" and document["steps"] == 1
    assert {row["stage"] for row in document["stages"]} == {"denoise", "refresh", "decode"}
    assert document["end_to_end"]["fps"] > 0 and document["memory"]["bytes"] > 0
    assert all(row["bf16"]["median"] > 0 for row in document["linears"])


def test_a_program_and_too_few_chunks_are_refused(
    invoke: Invoke, program: Typed, box: Typed, tmp_path: Path
) -> None:
    assert invoke("bench", program.path).exit_code == 4
    assert invoke("bench", box.path, "--chunks", "0").exit_code == 2
    assert invoke("bench", tmp_path / "nowhere.llvq").exit_code == 4


@pytest.fixture
def report() -> Report:
    one = Spread(0.010, 0.020, 8)
    slow, quick = Spread(0.003, 0.003, 20), Spread(0.001, 0.001, 20)
    return Report(
        box="model.llvq",
        id="0123456789abcdef0123",
        target="sm_90a",
        numerics="w4a8",
        video="704x1280, chunks of 8 latent frames",
        steps=4,
        seed=0,
        embeddings="random",
        device="NVIDIA H100 80GB HBM3",
        gpu={"driver_version": "580", "clocks.sm": "1755 MHz"},
        versions={"torch": "2.11"},
        loading=1.5,
        stages=[StageTime("denoise", 4, one), StageTime("refresh", 1, one)],
        end_to_end=EndToEnd(0.5, one, 93, 31.25),
        timed="all of it",
        memory={"bytes": 3 * 2**30, "of": "tensors on the device"},
        linears=[
            LinearTime("fp8_linear", 7040, 3072, 3072, 90, slow, quick),
            LinearTime("fp8_linear", 7040, 3072, 9216, 30, quick, slow),
        ],
    )


def test_a_slower_linear_is_named_with_what_it_costs(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    show(report)
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("fp8_linear")]
    assert SLOWER in rows[0] and "0.33x" in rows[0]
    assert SLOWER not in rows[1] and "3.00x" in rows[1]
    assert "warning: 1 of 2 shapes are slower than bf16" in text and "180.000 ms" in text
    for words in ("id 0123456789abcdef", "31.25 FPS", "p50 10.000 ms, p99 20.000 ms of 8",
                  "3.0 GiB, tensors on the device", "clocks.sm 1755 MHz", "40.000"):  # fmt: skip
        assert words in text


def test_there_is_no_warning_without_a_reason(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    show(replace(report, linears=report.linears[1:], gpu={}))
    text = capsys.readouterr().out
    assert "warning" not in text and "state" not in text
