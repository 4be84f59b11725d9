"""Forward and backward of a loss, replayed as one CUDA graph per kind of batch.

What the host does per kernel is then done once, and a step costs what its kernels cost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Captured:
    """A graph, the tensors that it reads, and the numbers that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    numbers: tuple[Tensor, ...]


class Steps:
    """Runs losses and their gradients, which add up in place where `Masters` keeps them.

    Without `graphs`, plainly. With them the first batch of a kind runs plainly as well, since
    libraries choose their algorithms then; the second is captured.
    """

    def __init__(self, *, graphs: bool) -> None:
        self.graphs = graphs
        self.captured: dict[Hashable, Captured | None] = {}
        # One pool for all: only one of them runs at a time, and what it leaves is read at once.
        self.pool = torch.cuda.graph_pool_handle() if graphs else None

    def __call__(
        self, kind: Hashable, inputs: tuple[Tensor, ...], loss: Loss
    ) -> tuple[Tensor, ...]:
        """The numbers of `loss(*inputs)`, whose first one is what the gradients are of.

        Batches of one `kind` have inputs of the same shapes and a loss that does the same.
        """
        if not self.graphs or kind not in self.captured:
            self.captured[kind] = None
            return _forward_backward(inputs, loss)
        captured = self.captured[kind] or self._capture(inputs, loss)
        self.captured[kind] = captured
        for static, new in zip(captured.inputs, inputs, strict=True):
            static.copy_(new)
        captured.graph.replay()
        return tuple(number.clone() for number in captured.numbers)

    def _capture(self, inputs: tuple[Tensor, ...], loss: Loss) -> Captured:
        graph, static = torch.cuda.CUDAGraph(), tuple(tensor.clone() for tensor in inputs)
        with torch.cuda.graph(graph, pool=self.pool, stream=torch.cuda.current_stream()):
            numbers = _forward_backward(static, loss)
        return Captured(graph, static, numbers)


@contextmanager
def own_stream(device: str) -> Iterator[None]:
    """All work on a stream that can be captured, which the default one cannot."""
    if not device.startswith("cuda"):
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def _forward_backward(inputs: tuple[Tensor, ...], loss: Loss) -> tuple[Tensor, ...]:
    first, *others = loss(*inputs)
    first.backward()
    return (first.detach(), *(number.detach() for number in others))
