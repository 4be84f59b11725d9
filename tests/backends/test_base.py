"""Targets are named, never guessed, and say why they cannot run an op."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llvq.backends.base import CPU, PLANNED, TARGETS, find_target
from llvq.dialect import DIALECT
from llvq.errors import TargetError


def test_the_cpu_runs_the_whole_dialect() -> None:
    assert find_target("cpu") is CPU
    assert [CPU.supports(op) for op in DIALECT] == [None] * len(DIALECT)


def test_an_op_that_is_not_there_has_a_reason() -> None:
    poor = replace(CPU, name="poor", ops=frozenset({"rope"}))
    assert poor.supports("rope") is None
    assert poor.supports("attention") == "poor has no implementation of llvq.attention"


@pytest.mark.parametrize("name", PLANNED)
def test_a_planned_target_is_told_from_an_unknown_one(name: str) -> None:
    assert name not in TARGETS
    with pytest.raises(TargetError, match=f"no code generation for target '{name}'") as caught:
        find_target(name)
    assert caught.value.because == "its kernels are not written yet"
    assert caught.value.fix == "use one of cpu"


def test_an_unknown_target_names_what_exists() -> None:
    with pytest.raises(TargetError, match="no target 'tpu'") as caught:
        find_target("tpu")
    assert caught.value.because is None and caught.value.fix == "use one of cpu"
