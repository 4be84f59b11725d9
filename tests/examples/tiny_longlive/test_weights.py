"""The optimizer in one buffer, held to PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from examples.tiny_longlive.weights import Masters, orthogonal, rate_scale

CLIP = 0.5


class Network(nn.Module):
    """Two matrices of one shape, one of another, and what Muon leaves to Adam."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 24))
        self.head = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x).tanh())


def test_steps_are_those_of_adamw_and_muon() -> None:
    torch.manual_seed(0)
    ours = Network()
    theirs = copy.deepcopy(ours)
    masters = Masters([ours], rate=1e-2, muon=True, clip=CLIP)
    matrices = [p for name, p in theirs.named_parameters() if "blocks" in name and p.ndim == 2]
    rest = [p for p in theirs.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = (
        torch.optim.AdamW(rest, 1e-2, betas=(0.9, 0.99), weight_decay=0.0),
        torch.optim.Muon(matrices, 1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        x, y = torch.randn(8, 16), torch.randn(8, 3)
        for network in (ours, theirs):
            (network(x) - y).square().mean().backward()
        norm = masters.step()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
        assert torch.allclose(norm, expected)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Newton-Schulz runs in bf16, in another order of sums.
        assert torch.allclose(own, other, atol=3e-3)
        assert (own.grad == 0).all()


def test_convolutions_are_matrices_too() -> None:
    torch.manual_seed(0)
    update = orthogonal(torch.randn(3, 8, 72))
    assert update.shape == (3, 8, 72)
    singular = torch.linalg.svdvals(update)
    assert (singular > 0.6).all() and (singular < 1.3).all()


def test_the_mean_is_of_all_weights_and_can_be_undone() -> None:
    torch.manual_seed(0)
    network = Network()
    masters = Masters([network], rate=1e-2, muon=True, ema=0.5)
    seen = []
    for _ in range(3):
        network(torch.randn(4, 16)).square().mean().backward()
        masters.step()
        seen.append(network.head.weight.detach().clone())
    masters.use_mean()
    mean = network.head.weight.detach().clone()
    assert not torch.equal(mean, seen[-1])
    assert (mean >= torch.stack(seen).amin(0) - 2e-2).all()
    masters.use_masters()
    assert torch.equal(network.head.weight, seen[-1])


def test_rates_fall_over_all_parts_and_every_part_warms_up() -> None:
    assert rate_scale(0.2, 0.3) == rate_scale(0.39, 0.9) == 1.0
    assert rate_scale(0.7, 0.5) == pytest.approx(0.5)
    assert rate_scale(0.5, 0.01) < rate_scale(0.51, 0.02)
    assert rate_scale(1.0, 1.0) == 0.01
