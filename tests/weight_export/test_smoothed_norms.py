"""Which linears read their factor from a norm: told by the graph, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llvq.errors import CheckpointError
from llvq.weight_export.smoothed_norms import factors_in_norms, smoothed_norms
from tests.weight_export.conftest import Made
from tests.weight_export.test_input_scales import linear, node

FACTOR = "dit.q.pre_quant_scale"
FOLDED = {"op": "multiply", "sources": ["dit.norm.weight", FACTOR]}
WEIGHTS = {
    "dit.norm.weight_smoothed": FOLDED,
    "dit.q": {"op": "quantize", "sources": ["dit.q.weight"]},
    "dit.o": {"op": "quantize", "sources": ["dit.o.weight"]},
}


def made_of(*nodes: dict[str, Any], weights: dict[str, Any] = WEIGHTS) -> Any:
    return SimpleNamespace(
        path=Path("p.nvfp4"),
        manifest={"weights": weights, "stages": {"denoise": {}}},
        graph=lambda name: {"nodes": list(nodes)},
    )


@pytest.mark.parametrize("maker", ["llvq.quantize.default", "llvq.quantize_lowrank.default"])
@pytest.mark.parametrize("cast", [False, True])
def test_a_linear_behind_a_norm_that_holds_its_factor(maker: str, cast: bool) -> None:
    nodes = [
        *(node(name, name) for name in ("x", "other")),
        node("w", "dit.norm.weight_smoothed"),
        node("norm", "aten.layer_norm.default", "x", 3, "w", None),
        node("cast", "aten.to.dtype", "norm"),
        node("made", maker, "cast" if cast else "norm"),
        node("plain", "aten.layer_norm.default", "x", 3),
        node("without", "llvq.quantize.default", "plain"),
        *linear("a", "made", "q"),
        *linear("b", "without", "o"),
    ]
    assert factors_in_norms(made_of(*nodes)) == {"q": FACTOR}


def test_a_program_whose_norms_hold_none_is_not_searched() -> None:
    weights = {name: record for name, record in WEIGHTS.items() if record is not FOLDED}
    assert factors_in_norms(made_of(weights=weights)) == {}


@pytest.mark.parametrize(
    "other",
    [
        {"op": "copy", "sources": ["dit.norm.weight"]},
        {"op": "multiply", "sources": ["dit.norm.weight", "dit.o.pre_quant_scale"]},
    ],
)
def test_a_norm_in_two_forms_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"dit\.norm\.weight is in the program in more than"):
        smoothed_norms(made_of(weights={**WEIGHTS, "dit.other": other}))


def test_a_real_program_has_one_such_norm_a_block(smoothed: Made) -> None:
    norms = [f"dit.blocks.{i}.norm3.{part}_smoothed" for i in (0, 1) for part in ("bias", "weight")]
    assert sorted(smoothed_norms(smoothed.program)) == norms
    assert set(factors_in_norms(smoothed.program)) == {f"blocks.{i}.cross_attn.q" for i in (0, 1)}
