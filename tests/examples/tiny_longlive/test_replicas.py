"""Two processes that train together are one with all their samples."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.tiny_longlive.progress import Progress
from examples.tiny_longlive.replicas import ALONE, Replicas, train_together
from examples.tiny_longlive.weights import Masters

STEPS = 5


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])})


def loss(model: nn.Module, x: Tensor) -> Tensor:
    for layer in model["blocks"]:  # type: ignore[index]
        x = layer(x).tanh()
    return x.square().mean()


def batches(seed: int) -> Tensor:
    return torch.randn(STEPS, 8, 16, generator=torch.Generator().manual_seed(seed))


def learn(args: argparse.Namespace, replicas: Replicas) -> None:
    """Both begin at other moments; the clock of the first decides when all end."""
    if args.fails and not replicas.is_first:
        raise ValueError("no room")
    seconds = 3600.0 if replicas.is_first else 0.0
    progress = Progress(args.out / "log.jsonl", seconds=seconds, steps=STEPS, replicas=replicas)
    model = network()
    masters = Masters([model], rate=1e-2, muon=True, replicas=replicas)
    for x in batches(replicas.seed(0)):
        loss(model, x).backward()
        masters.step()
        progress.advance(1, elapsed=progress.elapsed)
    torch.save((masters.weight, progress.elapsed), args.out / f"{replicas.rank}.pt")


def arguments(out: Path, gpus: int, *, fails: bool = False) -> argparse.Namespace:
    return argparse.Namespace(out=out, gpus=gpus, device="cpu", fails=fails)


@pytest.mark.timeout(120)
def test_the_mean_of_gradients_is_taken_together(tmp_path: Path) -> None:
    train_together(learn, arguments(tmp_path, 2))
    (first, clock), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second) and clock == other
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == STEPS
    model = network()
    masters = Masters([model], rate=1e-2, muon=True)
    seeds = [Replicas(rank, 2).seed(0) for rank in range(2)]
    for x in torch.cat([batches(seed) for seed in seeds], dim=1):
        loss(model, x).backward()
        masters.step()
    torch.testing.assert_close(first, masters.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(120)
def test_an_error_of_one_ends_all(tmp_path: Path) -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="no room"):
        train_together(learn, arguments(tmp_path, 2, fails=True))


def test_alone_there_is_nothing_to_agree_on() -> None:
    tensor = torch.ones(3)
    assert ALONE.average(tensor) is tensor and ALONE.agree(0.5) == 0.5 and ALONE.seed(7) == 7
