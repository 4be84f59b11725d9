"""Which linears are timed, at which shapes, and when one is called slower."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from llvq.bench.linears import LinearTime, distinct_calls, is_quantized, time_linears
from llvq.bench.stages import time_stages
from llvq.bench.timing import Spread
from llvq.runtime.executable import Executable


@pytest.fixture(scope="module")
def given(executable: Executable) -> Mapping[str, Tensor]:
    return time_stages(executable, chunks=1, steps=1, seed=0, tell=lambda done: None)[1]


def test_every_shape_of_quantized_linear_is_timed_once(
    executable: Executable, given: Mapping[str, Tensor]
) -> None:
    rows = time_linears(executable.stage("denoise"), given, repeats=2)
    shapes = {(row.tokens, row.k, row.features): row.calls for row in rows}
    # Two layers of 12 tokens: qkv; o, and q and o of cross-attention; the FFN.
    assert shapes == {(12, 64, 192): 2, (12, 64, 64): 6, (12, 64, 128): 2, (12, 128, 64): 2}
    assert {row.op for row in rows} == {"nvfp4_linear"}
    assert all(row.quantized.runs == row.bf16.runs == 2 for row in rows)


def test_calls_have_the_values_of_the_stage(
    executable: Executable, given: Mapping[str, Tensor]
) -> None:
    calls = distinct_calls(executable.stage("denoise"), given, is_quantized)
    for call in calls:
        result = call.node.target(*call.args, **call.kwargs)
        assert result.isfinite().all() and result.shape == call.node.meta["val"].shape
        assert bool(torch.any(result != 0))


@pytest.mark.parametrize(("ours", "plain", "slower"), [(2.0, 1.0, True), (1.0, 2.0, False)])
def test_slower_is_by_the_median(ours: float, plain: float, slower: bool) -> None:
    quantized, bf16 = Spread(ours, 9.0, 3), Spread(plain, 9.0, 3)
    row = LinearTime("nvfp4_linear", 12, 64, 64, 1, quantized, bf16)
    assert row.slower is slower
