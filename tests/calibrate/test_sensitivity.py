"""Sensitivity against quantizing each layer alone, which is what it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llvq.calibrate.sensitivity import Quantized, SensitiveRollout, quantized
from llvq.checkpoints.specs import dit_specs
from llvq.models.config import DitConfig, StreamConfig
from llvq.models.dit import CausalWanDit
from llvq.recipe import LinearRecipe

CONFIG = DitConfig(dim=64, ffn_dim=128, num_heads=1, num_layers=2, in_dim=4, out_dim=4,
                   text_dim=32, text_len=8)  # fmt: skip
STREAM = StreamConfig(frames_per_chunk=1, window_frames=3, sink_frames=1, steps=2)
LAYERS = ("blocks.0.self_attn.q", "blocks.0.self_attn.v", "blocks.0.cross_attn.k",
          "blocks.0.ffn.0", "blocks.1.self_attn.o", "blocks.1.ffn.2")  # fmt: skip
SHAPE = (1, 1, 4, 4, 6)


@pytest.fixture
def model() -> CausalWanDit:
    torch.manual_seed(0)
    dit = CausalWanDit(CONFIG)
    weights = {name: 0.3 * torch.randn(shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)
               for name, shape in dit_specs(CONFIG).items()}  # fmt: skip
    weights["blocks.1.ffn.2.weight"] *= 8  # the worst by far
    # Attention over the prompt that is nearly uniform would move the velocity by less than fp32's
    # rounding does, and what each layer alone does could not be measured.
    weights["blocks.0.cross_attn.norm_q.weight"] *= 10
    weights["blocks.0.cross_attn.norm_k.weight"] *= 10
    dit.load_state_dict(weights)
    return dit.requires_grad_(False)


def moved(model: CausalWanDit, layer: Quantized, call: tuple[Tensor, ...]) -> float:
    """The energy by which quantizing that layer alone moves the velocity."""
    hook = layer.linear.register_forward_hook(lambda _, x, y: y + 0.2 * layer.error(x[0], y))
    changed = model(*call)[0]
    hook.remove()
    return float(((changed - model(*call)[0]) / 0.2).square().sum())


def test_scores_are_what_each_layer_alone_would_do(
    model: CausalWanDit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llvq.calibrate.sensitivity.PROBES", 400)
    layers = quantized(model, LAYERS, LinearRecipe())
    rollout = SensitiveRollout(model, STREAM, layers)
    rollout.table = rollout.table.begin(0)
    latent, prompt = torch.randn(SHAPE), torch.randn(1, 8, 32)
    rollout.call(0, latent, 700.0, prompt, None)
    empty = [latent.new_empty(1, 0, 1, 64)] * 2
    call = (latent, torch.full((1, 1), 700.0), torch.zeros(1).double(), prompt, empty, empty)
    for name, layer in layers.items():
        # 400 probes: a standard deviation of at most sqrt(2 / 400) = 7%.
        assert rollout.scores[name] == pytest.approx(moved(model, layer, call), rel=0.3), name
    assert max(rollout.scores, key=lambda name: rollout.scores[name]) == "blocks.1.ffn.2"


def test_a_video_is_the_same_video_and_the_refresh_is_not_asked(model: CausalWanDit) -> None:
    from llvq.calibrate.rollout import EagerRollout

    layers = quantized(model, LAYERS, LinearRecipe())
    plain, asked = EagerRollout(model, STREAM), SensitiveRollout(model, STREAM, layers)
    prompt = torch.randn(1, 8, 32)
    for index in range(2):
        noise = torch.randn(SHAPE)
        x0 = plain.run(index, [noise], prompt)
        assert torch.equal(asked.run(index, [noise], prompt), x0)
        assert not x0.requires_grad
    assert all(score > 0 for score in asked.scores.values()) and asked.energy > 0
    before = dict(asked.scores)
    asked.table = asked.table.begin(2)
    asked.call(2, torch.randn(SHAPE), 0, prompt, None)
    assert asked.scores == before
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, nn.Linear))
