"""The benchmark of windows in the interpreter: codes are right, and the table has every format."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from benchmarks import window
from llvq.bench.timing import Spread
from llvq.models.config import ModelConfig
from tests.backends.triton.interpreter import Interpreted

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets kernels")


def test_every_format_is_held_against_torch_code_and_timed(tiny_config: ModelConfig) -> None:
    rows = window.windows(Interpreted(), tiny_config, torch.device("cpu"), 1)
    assert [row.kv for row in rows] == [None, "none", "fp8", "nvfp4"]
    assert all(row.time.runs == 1 and row.off_by_one < 0.01 for row in rows)
    none, nvfp4 = rows[1].nbytes, rows[3].nbytes
    assert 1.8 < none / nvfp4 < 2  # bf16 and FP8 against 4.5 bits and FP8


def test_a_wrong_window_is_no_result(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = window.rows_in_fp8

    def wrong(*given: object) -> window.Rows:
        rows = right(*given)  # type: ignore[arg-type]
        return replace(rows, k=rows.k.flip(0))

    monkeypatch.setattr(window, "rows_in_fp8", wrong)
    with pytest.raises(ValueError, match="wrong codes in a window"):
        window.windows(Interpreted(), tiny_config, torch.device("cpu"), 1)


def test_the_share_is_that_of_all_layers() -> None:
    rows = [window.Row(None, Spread(1e-4, 1e-4, 1), 0, 0.0),
            window.Row("nvfp4", Spread(2e-4, 2e-4, 1), 2 * 10**8, 0.001)]  # fmt: skip
    found = {"command": "c", "device": "d", "versions": "v", "forward_ms": 150.0}
    text = window.text_of(found | {"rows": [asdict(row) for row in rows]}, layers=30)
    assert "100.0" in text and "2.00" in text and "2.00%" in text
