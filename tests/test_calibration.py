"""Facts about linears, found by name and checked against the weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llvq.calibration import LayerFacts, calibration_of
from llvq.errors import CheckpointError
from llvq.sources import DictSource

N, K, R = 24, 32, 4
FACTS = {
    "input_scale": torch.tensor(0.25),
    "pre_quant_scale": torch.rand(K),
    "lora_down": torch.rand(R, K),
    "lora_up": torch.rand(N, R),
    "weight_amax": torch.rand(N, K // 16),
}


def layer(name: str, **changes: Tensor) -> dict[str, Tensor]:
    facts = FACTS | changes
    return {f"{name}.weight": torch.rand(N, K)} | {f"{name}.{k}": v for k, v in facts.items()}


def test_a_plain_checkpoint_says_nothing() -> None:
    assert calibration_of(DictSource({"a.weight": torch.rand(N, K), "a.bias": torch.rand(N)})) == {}


def test_facts_are_named_and_equal_ones_share_a_name() -> None:
    source = DictSource(layer("b.q") | layer("b.k") | layer("b.v", input_scale=torch.tensor(0.5)))
    table = calibration_of(source)
    assert list(table) == ["b.k", "b.q", "b.v"]
    own = {fact: f"b.q.{fact}" for fact in ("lora_down", "lora_up", "weight_amax")}
    shared = {"input_scale": "b.k.input_scale", "pre_quant_scale": "b.k.pre_quant_scale"}
    assert table["b.q"] == LayerFacts(**own, **shared, rank=R)
    assert table["b.v"].input_scale == "b.v.input_scale"
    assert table["b.v"].pre_quant_scale == "b.k.pre_quant_scale"


@pytest.mark.parametrize("fact", list(FACTS))
def test_a_fact_of_another_shape_is_refused(fact: str) -> None:
    with pytest.raises(CheckpointError, match=r"what is known of b\.q") as caught:
        calibration_of(DictSource(layer("b.q", **{fact: torch.rand(7, 5, 3)})))
    assert "b.q.lora" in str(caught.value) or fact in str(caught.value)


def test_half_a_branch_no_weight_or_no_linear_is_refused() -> None:
    tensors = layer("b.q")
    for missing in ("b.q.lora_up", "b.q.lora_down", "b.q.weight"):
        rest = {name: tensor for name, tensor in tensors.items() if name != missing}
        with pytest.raises(CheckpointError):
            calibration_of(DictSource(rest))
    with pytest.raises(CheckpointError, match="only linears"):
        calibration_of(DictSource(tensors | {"b.q.weight": torch.rand(3, 3, 3, 3, 3)}))
