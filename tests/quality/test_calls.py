"""Which call of a stage was of which step and chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from llvq.quality.calls import CallErrors, kinds_by_moment, median_by_moment
from llvq.quality.metrics import NOTHING, Energies


@dataclass(frozen=True)
class Op:
    kind: str
    output: CallErrors


def at(level: float) -> Energies:
    """The sums of a pair whose SQNR is `level` dB."""
    return Energies(1.0, 10 ** (-level / 10), 1.0, 1.0)


def errors(denoise: list[float], refresh: list[float]) -> CallErrors:
    found = CallErrors()
    for stage, levels in (("denoise", denoise), ("refresh", refresh)):
        for level in levels:
            found.add(stage, at(level))
    return found


def test_calls_are_dealt_to_steps() -> None:
    found = errors([10, 20, 11, 21], [30, 31])
    assert found.moments(2) == {
        "step 1": [at(10), at(11)],
        "step 2": [at(20), at(21)],
        "refresh": [at(30), at(31)],
    }
    assert found.calls == 6 and found.total.signal == 6
    assert list(errors([10, 20], []).moments(2)) == ["step 1", "step 2"]
    assert CallErrors({"condition": [at(10)]}).moments(2) == {}


def test_the_median_is_over_ops_that_ran() -> None:
    never, once = CallErrors({"denoise": [NOTHING, NOTHING]}), errors([10, 14], [8, 9])
    ops = [Op("a", once), Op("a", errors([20, 15], [])), Op("b", never)]
    found = median_by_moment(ops, 1)
    assert found["step 1"] == pytest.approx([15, 14.5]) and found["refresh"] == pytest.approx(
        [8, 9]
    )
    assert math.isnan(median_by_moment([Op("b", never)], 1)["step 1"][0])
    assert never.calls == 0


def test_energies_of_a_kind_add_up() -> None:
    found = kinds_by_moment([Op("a", errors([10, 10], [10])), Op("a", errors([10, 10], [10]))], 1)
    assert found["a"]["step 1"].signal == 4 and found["a"]["refresh"].signal == 2
    assert found["a"]["step 1"].sqnr_db == pytest.approx(10)
