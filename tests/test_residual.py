"""What is left of a weight once smoothing and branch are taken out, against plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llvq.calibration import LayerFacts
from llvq.errors import FormatError
from llvq.residual import block_amax, residual_of
from llvq.sources import DictSource

N, K, R = 12, 32, 4
DOUBLE = torch.float64


def tensors(**changes: Tensor) -> DictSource:
    random = torch.Generator().manual_seed(0)
    found = {
        "w": torch.randn(N, K, generator=random).bfloat16(),
        "s": torch.rand(K, generator=random) + 0.1,
        "down": torch.randn(R, K, generator=random),
        "up": torch.randn(N, R, generator=random),
        "other": torch.ones(3),
    }
    return DictSource(found | changes)


SMOOTH, BRANCH = LayerFacts(pre_quant_scale="s"), LayerFacts(lora_down="down", lora_up="up", rank=R)
BOTH = LayerFacts(pre_quant_scale="s", lora_down="down", lora_up="up", rank=R)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("facts", [SMOOTH, BRANCH, BOTH])
def test_smoothing_and_branch_give_the_weight_back(facts: LayerFacts, dtype: torch.dtype) -> None:
    """In double precision, from the rounded facts: (residual + up @ down) * s is the weight."""
    source = tensors()
    left = residual_of(source, "w", facts, dtype).read("w").to(DOUBLE)
    s, down, up = (source.read(name).to(dtype).to(DOUBLE) for name in ("s", "down", "up"))
    if facts.lora_down:
        left = left + up @ down
    if facts.pre_quant_scale:
        left = left * s
    torch.testing.assert_close(left, source.read("w").to(DOUBLE), rtol=1e-5, atol=1e-5)


def test_rows_are_those_of_the_whole() -> None:
    source = residual_of(tensors(), "w", BOTH, torch.bfloat16)
    parts = [source.read_rows("w", start, start + 5) for start in (0, 5, 10)]
    torch.testing.assert_close(torch.cat(parts), source.read("w"))
    assert source.spec("w").dtype == source.read("w").dtype == torch.float32
    assert source.packed("w") is None and source.names() == tensors().names()


def test_other_tensors_and_a_weight_without_facts_are_as_they_were() -> None:
    source = tensors()
    assert torch.equal(residual_of(source, "w", BOTH, None).read("other"), source.read("other"))
    plain = LayerFacts(input_scale="i", weight_amax="a")
    assert residual_of(source, "w", plain, None) is source


@pytest.mark.parametrize(
    ("name", "bad", "says"),
    [
        ("s", 0.0, "not positive"),
        ("s", -1.0, "not positive"),
        ("s", torch.nan, "not finite"),
        ("down", torch.inf, "not finite"),
        ("up", torch.nan, "not finite"),
    ],
)
def test_a_spoiled_fact_is_named(name: str, bad: float, says: str) -> None:
    spoiled = tensors().read(name).clone()
    spoiled.view(-1)[3] = bad
    with pytest.raises(FormatError, match=f"tensor {name} holds a value that is {says}"):
        residual_of(tensors(**{name: spoiled}), "w", BOTH, None)


def test_block_magnitudes_are_rows_and_not_negative() -> None:
    amax = torch.rand(N, K // 16)
    source = DictSource({"amax": amax})
    found = block_amax(source, "amax", 3, 4)
    assert found is not None and torch.equal(found, amax[3:7])
    assert block_amax(source, None, 3, 4) is None
    with pytest.raises(FormatError, match="tensor amax holds a value that is negative"):
        block_amax(DictSource({"amax": -amax}), "amax", 3, 4)
