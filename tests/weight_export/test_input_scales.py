"""Whose input scale is whose, told by the graphs: layers with equal scales share one tensor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llvq.artifact import Box
from llvq.errors import CheckpointError
from llvq.weight_export.input_scales import as_stored_elsewhere, input_scales

WEIGHTS = {
    "dit.q_k": {"op": "quantize", "sources": ["dit.q.weight", "dit.k.weight"]},
    "dit.o": {"op": "quantize", "sources": ["dit.o.weight"]},
    "dit.q.input_scale": {"op": "copy", "sources": ["dit.q.input_scale"]},
}


def node(name: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    refs = [{"node": a} if isinstance(a, str) else a for a in args]
    named = {k: {"node": v} for k, v in kwargs.items()}
    return {"name": name, "target": target, "args": refs, "kwargs": named}


def linear(name: str, x: str, weight: str) -> list[dict[str, Any]]:
    return [
        *(node(f"{name}_x{i}", "operator.getitem", x, i) for i in range(3)),
        node(f"{name}_codes", f"dit.{weight}.codes"),
        node(
            name, "llvq.nvfp4_linear.default", *(f"{name}_x{i}" for i in range(3)), f"{name}_codes"
        ),
    ]


def made_of(*nodes: dict[str, Any], weights: dict[str, Any] = WEIGHTS) -> Any:
    return SimpleNamespace(
        path=Path("p.nvfp4"),
        manifest={"weights": weights, "stages": {"denoise": {}}},
        graph=lambda name: {"nodes": list(nodes)},
    )


def test_a_scale_may_be_an_argument_of_what_quantizes() -> None:
    for how in ({}, {"global_scale": "s"}):
        args = ("x",) if how else ("x", "s")
        nodes = [
            node("x", "x"),
            node("s", "dit.q.input_scale"),
            node("made", "llvq.quantize.default", *args, **how),
            *linear("a", "made", "q_k"),
            *linear("b", "made", "o"),
        ]
        assert input_scales(made_of(*nodes)) == dict.fromkeys("qko", "dit.q.input_scale")


def test_a_program_that_scales_at_each_call_has_none() -> None:
    weights = {k: v for k, v in WEIGHTS.items() if v["op"] == "quantize"}
    nodes = [node("made", "llvq.quantize.default"), *linear("a", "made", "q_k")]
    assert input_scales(made_of(*nodes, weights=weights)) == {}


def test_a_real_program_without_calibration_has_none(program: Box) -> None:
    assert input_scales(program) == {}


def test_static_for_some_and_not_for_others_is_refused() -> None:
    nodes = [node("x", "x"), node("made", "llvq.quantize.default", "x"), *linear("a", "made", "o")]
    with pytest.raises(CheckpointError, match="does not tell the input scale of o"):
        input_scales(made_of(*nodes))


@given(st.floats(min_value=2.0**-60, max_value=2.0**60, width=32))
def test_a_scale_goes_out_and_in_again_exactly(amax: float) -> None:
    scale = torch.tensor(amax)
    assert as_stored_elsewhere(scale * 1.75, "four_over_six") * 1.75 == scale * 1.75
    assert as_stored_elsewhere(scale, "max") == scale
