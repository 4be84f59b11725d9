"""Targets are named, never guessed, and say what runs each op or why nothing does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llvq.backends.base import CPU, NUMERICS_OF_TARGET, REFERENCE, TARGETS, Target, find_target
from llvq.backends.implementations import find_implementation
from llvq.dialect import DIALECT
from llvq.errors import TargetError
from llvq.formats.kv import KV_FORMATS
from llvq.passes.lowering import LOWERINGS


def test_the_cpu_runs_the_whole_dialect() -> None:
    assert find_target("cpu") is CPU and CPU.chip is None
    assert [CPU.supports(op) for op in DIALECT] == [None] * len(DIALECT)
    assert {CPU.implementation(op) for op in DIALECT} == {REFERENCE}


def test_an_op_that_is_not_there_has_a_reason() -> None:
    poor = replace(CPU, name="poor", implementations={"rope": "reference"})
    assert poor.supports("rope") is None
    assert poor.supports("attention") == (
        "poor has no implementation of llvq.attention in w4a4-emulated"
    )


def test_a_page_format_may_have_an_implementation_of_its_own() -> None:
    target = Target("t", "cuda", "w4a4", {"write_page": "triton", "write_page:int4": "torch"})
    assert target.implementation("write_page", "nvfp4") == "triton"
    assert target.implementation("write_page", "int4") == "torch"
    assert target.implementation("write_page") == "triton"


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.name}-{t.numerics}")
def test_what_a_target_names_is_there(target: Target) -> None:
    assert target.numerics in LOWERINGS
    for entry, implementation in target.implementations.items():
        op, _, kv_format = entry.partition(":")
        assert op in DIALECT and (not kv_format or kv_format in KV_FORMATS)
        assert implementation == REFERENCE or find_implementation(implementation, op), entry


def test_the_first_numerics_of_a_target_are_its_default() -> None:
    assert NUMERICS_OF_TARGET["sm_90a"] == ("w4a8", "w4a4-emulated", "w4a16")
    assert find_target("sm_90a").numerics == "w4a8"
    assert find_target("sm_90a", "w4a16").numerics == "w4a16"
    assert find_target("sm_100a").chip == "sm_100a"


def test_an_unknown_target_or_numerics_names_what_exists() -> None:
    with pytest.raises(TargetError, match="no target 'tpu'") as caught:
        find_target("tpu")
    assert caught.value.fix == "use one of cpu, sm_90a, sm_100a, sm_103a, sm_120a"
    with pytest.raises(TargetError, match="sm_100a does not compute in 'w4a8'") as caught:
        find_target("sm_100a", "w4a8")
    assert caught.value.fix == "use one of w4a4"
