"""One model trained by several processes, each with a GPU and samples of its own.

All of them hold the same weights: they begin alike, and every step they take the mean of their
gradients. What decides how the training goes (clock, errors) is agreed on, so that none waits for
a step that another does not make. The first writes and prints.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

SEEDS_APART = 100_003  # seeds of two processes


@dataclass(frozen=True)
class Replicas:
    """This process among those that train together. Alone, all of it does nothing."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """Of what this process draws for itself."""
        return seed + SEEDS_APART * self.rank

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over all processes, in place. The host does not wait."""
        if self.count > 1:
            dist.all_reduce(tensor)
            tensor /= self.count
        return tensor

    def agree(self, value: float) -> float:
        """The value that the first process has. Waits for its host, not for a device."""
        if self.count == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(agreed, 0)
        return float(agreed)


ALONE = Replicas()
Main = Callable[[argparse.Namespace, Replicas], None]


def train_together(main: Main, args: argparse.Namespace) -> None:
    """`main(args, replicas)` in `args.gpus` processes, `args.device` being a GPU of its own.

    Ends with the first error of any of them, and ends the others then.
    """
    if args.gpus == 1:
        main(args, ALONE)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (main, args, Path(folder) / "meet"), nprocs=args.gpus)


def _process(rank: int, main: Main, args: argparse.Namespace, meet: Path) -> None:
    backend = "gloo"
    if args.device == "cuda":
        args.device, backend = f"cuda:{rank}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=meet.as_uri(), rank=rank, world_size=args.gpus)
    main(args, Replicas(rank, args.gpus))
    # Not after an error: the others would fail of a partner that is gone, and be heard first.
    dist.destroy_process_group()
