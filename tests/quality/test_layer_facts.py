"""What stands beside a quantized linear, read back: the linear with it is the one it stands for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llvq.calibration import LayerFacts
from llvq.quality.layer_facts import Beside, beside
from llvq.residual import residual_of
from llvq.sources import DictSource

N, K, R = 6, 32, 2
RANDOM = torch.Generator().manual_seed(0)
W, UP = torch.randn(N, K, generator=RANDOM), torch.randn(2 * N, R, generator=RANDOM)
DOWN, S = torch.randn(2 * R, K, generator=RANDOM), torch.rand(K, generator=RANDOM) + 0.3
X = torch.randn(3, K, generator=RANDOM)
FACTS = {"input_scale": "a.q.input_scale", "pre_quant_scale": "a.q.pre_quant_scale",
         "lora_down": "a.k.lora_down", "lora_up": "a.k.lora_up", "rank": R}  # fmt: skip
STACKED = {"a.q_k.lora_down": DOWN, "a.q_k.lora_up": UP, "a.q.activation_scale": torch.tensor(0.5)}
ROWS = slice(N, 2 * N)


def test_weight_and_output_are_those_before_anything_was_taken_out() -> None:
    plain = DictSource({"w": W, "s": S, "down": DOWN[R:], "up": UP[N:]})
    known = LayerFacts(pre_quant_scale="s", lora_down="down", lora_up="up", rank=R)
    residual = residual_of(plain, "w", known, None).read("w")
    tensors = STACKED | {"a.q.pre_quant_scale": S}
    found = beside(FACTS, "a.q_k", 1, ROWS, tensors, DictSource({}))
    assert found is not None and found.scale == 0.5
    torch.testing.assert_close(found.whole(residual, 0), W, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.whole(residual[2:5], 2), W[2:5], rtol=1e-4, atol=1e-5)
    x = found.smoothed(X)
    y = found.with_branch(F.linear(x, residual), x)
    torch.testing.assert_close(y, F.linear(X, W), rtol=1e-4, atol=1e-4)


def test_a_folded_scale_is_the_checkpoints_or_unknown() -> None:
    source = DictSource({"a.q.pre_quant_scale": S})
    found = beside(FACTS, "a.q_k", 1, ROWS, STACKED, source)
    assert found is not None and found.smooth is S
    assert beside(FACTS, "a.q_k", 1, ROWS, STACKED, DictSource({})) is None


def test_a_branch_that_was_not_stacked_is_found_by_its_own_name() -> None:
    tensors = {"a.k.lora_down": DOWN[:R], "a.k.lora_up": UP[:N]}
    facts = {name: FACTS[name] for name in ("lora_down", "lora_up", "rank")}
    found = beside(facts, "a.q_k", 1, ROWS, tensors, DictSource({}))
    assert found is not None and torch.equal(found.up, UP[:N]) and found.scale is None


def test_a_weight_that_was_packed_before_has_its_scale_alone() -> None:
    found = beside(FACTS | {"packed": True}, "a.q_k", 1, ROWS, STACKED, DictSource({}))
    assert found == Beside(scale=STACKED["a.q.activation_scale"])
    assert beside({}, "a.q", 0, ROWS, {}, DictSource({})) == Beside()
