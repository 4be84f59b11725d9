"""The whole benchmark on the tiny model: every table is there, and the files say what was run."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import denoise, denoise_ceilings, denoise_run, denoise_variants
from benchmarks.denoise_ceilings import Linear, best, ceilings
from benchmarks.denoise_compiled import OutOfTime, time_limit
from llvq.errors import KernelError
from llvq.models.config import LONGLIVE2_5B, ModelConfig

CPU = torch.device("cpu")
WORDS = (
    "--device",
    "cpu",
    "--tiny",
    "--repeats",
    "2",
    "--rounds",
    "1",
    "--op-runs",
    "1",
    "--rollout",
    "2",
)
VARIANTS = ("w4a4-emulated-none", "w4a4-emulated-nvfp4")


@pytest.fixture(scope="module")
def written(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("denoise")
    patch = pytest.MonkeyPatch()
    patch.setattr(denoise_run, "denoiser_config", lambda tiny: tiny_config)
    assert denoise.main([*WORDS, "--variants", *VARIANTS, "--out", str(folder)]) == 0
    patch.undo()
    return folder


@pytest.fixture(scope="module")
def document(written: Path) -> dict[str, Any]:
    return json.loads((written / "denoise.json").read_text())


def test_both_sides_of_every_table_are_there(written: Path, document: dict[str, Any]) -> None:
    text = (written / "denoise.txt").read_text()
    for words in ("$ python -m benchmarks.denoise", "ceiling, measured here", "PyTorch eager, bf16",
                  "llvq w4a4-emulated, nvfp4 pages, eager", "smaller than bf16",
                  "relative L2 against bf16", "of bf16 attention"):  # fmt: skip
        assert words in text
    names = [row["name"] for row in document["forwards"]]
    assert names[0] == "PyTorch eager, bf16" and names[-1] == "PyTorch eager, bf16, at the end"
    assert document["versions"]["torch"] == torch.__version__


def test_pages_are_compared_side_by_side(document: dict[str, Any]) -> None:
    plain, packed = (row["bytes"] for row in document["pages"])
    assert [row["kv"] for row in document["pages"]] == ["none", "nvfp4"]
    assert 3.4 < plain / packed < 32 / 9
    assert all(len(row["rounds"]) == 1 for row in document["pages"])


def test_ops_have_all_flop_of_the_forward_but_the_ends(document: dict[str, Any]) -> None:
    rows = document["ops"]["w4a4-emulated, nvfp4 pages"]
    outer = sum(row["flop"] for row in rows if row["op"].startswith("aten."))
    assert sum(row["flop"] for row in rows) - outer == document["flop"]
    assert [row["seconds"] for row in rows] == sorted((r["seconds"] for r in rows), reverse=True)
    linear = next(row for row in rows if row["op"] == "nvfp4_linear" and row["calls"] == 6)
    assert linear["shape"] == "12x64x64" and linear["ceiling"] == "bf16 GEMM" and linear["share"]


def test_errors_are_those_of_four_bits(document: dict[str, Any]) -> None:
    for row in document["errors"]:
        assert 0.001 < row["velocity"] < 0.3 and len(row["layers"]) == 2
        assert row["twice"] == row["poisoned"] == 0


def test_a_video_is_compared_chunk_by_chunk(written: Path, document: dict[str, Any]) -> None:
    assert [row["name"] for row in document["rollouts"]] == [
        row["name"] for row in document["errors"]
    ]
    assert all(0.001 < error < 0.5 for row in document["rollouts"] for error in row["chunks"])
    assert "relative L2 of a free-running video, by chunk" in (written / "denoise.txt").read_text()


def test_what_fails_takes_nothing_with_it(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KernelError("no such kernel")

    monkeypatch.setattr(denoise_run, "denoiser_config", lambda tiny: tiny_config)
    monkeypatch.setattr(denoise_variants, "_prepared", broken)
    assert denoise.main([*WORDS, "--variants", VARIANTS[0]]) == 1
    text = capsys.readouterr().out
    assert "FAILED: w4a4-emulated, none pages: error[kernel]: no such kernel" in text
    assert "PyTorch eager, bf16, at the end" in text


def test_a_forward_of_5b_has_the_known_work() -> None:
    """61.7 TFLOP of linears, of which the cross-attention K and V are computed once; 74.4 of
    attention."""
    assert denoise._flop(LONGLIVE2_5B) / 1e12 == pytest.approx(61.1 + 74.4, rel=0.005)


def test_ceilings_of_a_cpu_leave_out_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoise_ceilings, "REPEATS", 2)
    rows = ceilings(CPU, [Linear(32, 64, 48)], 32, 96, 2, 16)
    known = {row.what: row.rate for row in rows}
    assert known.pop("fp8 GEMM") is None and known.pop("fp8 GEMM, one scale") is None
    assert all(rate and rate > 0 for rate in known.values())
    assert best(rows, "fp8 GEMM") is None and best(rows, "copy") == known["copy"]


def test_a_limit_of_time_is_not_swallowed() -> None:
    with pytest.raises(OutOfTime), time_limit(1):
        while True:
            with suppress(Exception):  # as a compiler does
                sum(range(10000))


def test_what_cannot_be_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        denoise.arguments(["--variants", "w9a9"])
    assert "w4a8-nvfp4" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert denoise.main([]) == 2
        assert "--device cpu --tiny" in capsys.readouterr().err
