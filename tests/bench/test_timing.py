"""Quantiles against numpy, and that a measurement warms up, takes turns and counts."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from llvq.bench.timing import Timer, measure, quantile, spread

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 101])
def test_a_quantile_is_that_of_numpy(share: float, count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    wanted = np.quantile(values, share, method="inverted_cdf")
    assert quantile(list(values), share) == wanted


def test_p99_of_a_few_is_the_slowest() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.p99, found.runs) == (2.0, 3.0, 3)


def test_calls_take_turns_after_a_warm_up() -> None:
    made: list[str] = []
    calls = [lambda: made.append("a"), lambda: made.append("b")]
    found = measure(calls, CPU, repeats=4, warmup=1)
    assert made == ["a", "a", "b", "a", "b"] and found.runs == 4


def test_what_takes_longer_measures_longer() -> None:
    quick, slow = (
        measure([lambda pause=pause: time.sleep(pause)], CPU, repeats=3, warmup=0)
        for pause in (0.001, 0.02)
    )
    assert quick.median < slow.median and slow.median >= 0.02


def test_marks_of_a_timer() -> None:
    timer = Timer(CPU)
    begin = timer.mark()
    time.sleep(0.01)
    end = timer.mark()
    timer.synchronize()
    assert 0.01 <= timer.between(begin, end) < 1
