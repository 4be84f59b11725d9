"""Launchers of machines that compile."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from llvq.backends.triton.launchers import Collector, JustInTime, chip_of
from llvq.backends.triton.specialize import specialize
from llvq.errors import KernelError
from tests.backends.triton.compiled import meta


@triton.jit
def double(x, out, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < count) * 2, mask=i < count)


def test_a_collector_notes_each_binary_once_and_runs_nothing() -> None:
    collect, x = Collector(), meta(100)
    for block in (64, 128, 64):
        collect(double, (2,), x, x, 100, BLOCK=block, warps=2)
    collect(double, (9,), meta(7), meta(7), 7, BLOCK=64, warps=2)
    expected = [specialize(double, (x, x, 100), {"BLOCK": block}, warps=2, stages=2)
                for block in (64, 128)]  # fmt: skip
    assert list(collect.wanted) == expected
    assert all(kernel is double for kernel in collect.wanted.values())


def test_only_a_gpu_has_a_chip() -> None:
    with pytest.raises(KernelError, match="cpu is no GPU"):
        chip_of(torch.device("cpu"))
    with pytest.raises(KernelError):
        JustInTime(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a GPU")
def test_just_in_time_builds_once_and_launches_on_the_current_stream() -> None:
    device = torch.device("cuda")
    launch, x = JustInTime(device), torch.randn(1000, device=device)
    out = torch.empty_like(x)
    for _ in range(2):
        launch(double, (4,), x, out, 1000, BLOCK=256)
    assert torch.equal(out, x * 2) and len(launch.loaded) == 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(double, (4,), x, out, 1000, BLOCK=256)
    x.neg_()
    graph.replay()
    assert torch.equal(out, x * 2)
