"""Work on a batch, replayed as one CUDA graph per kind of batch.

What the host does per kernel is then done once, and a step costs what its kernels cost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Work = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Captured:
    """A graph, the tensors that it reads, and the numbers that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Steps:
    """Runs work on batches, as CUDA graphs if `graphs`.

    The first batch of a kind runs plainly in any case, since libraries choose their algorithms
    then; the second is captured. Gradients add up where `Masters` keeps them.
    """

    def __init__(self, *, graphs: bool) -> None:
        self.graphs = graphs
        self.captured: dict[Hashable, Captured | None] = {}
        # One pool for all: only one of them runs at a time, and what it leaves is copied at once.
        self.pool = torch.cuda.graph_pool_handle() if graphs else None

    def __call__(
        self, kind: Hashable, inputs: tuple[Tensor, ...], work: Work
    ) -> tuple[Tensor, ...]:
        """`work(*inputs)`. Batches of one `kind` have inputs of the same shapes and the same work:
        it must not depend on anything else that changes, nor wait for the device.
        """
        if not self.graphs or kind not in self.captured:
            self.captured[kind] = None
            return work(*inputs)
        captured = self.captured[kind] or self._capture(inputs, work)
        self.captured[kind] = captured
        for static, new in zip(captured.inputs, inputs, strict=True):
            static.copy_(new)
        captured.graph.replay()
        return tuple(output.clone() for output in captured.outputs)

    def _capture(self, inputs: tuple[Tensor, ...], work: Work) -> Captured:
        graph, static = torch.cuda.CUDAGraph(), tuple(tensor.clone() for tensor in inputs)
        recording = torch.cuda.graph(
            graph,
            pool=self.pool,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",  # NCCL asks for its events from a thread of its own
        )
        with recording:
            outputs = work(*static)
        return Captured(graph, static, outputs)


@contextmanager
def own_stream(device: str) -> Iterator[None]:
    """All work on a stream that can be captured, which the default one cannot."""
    if not device.startswith("cuda"):
        yield
        return
    outside, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    # Streams do not wait for each other: weights may still be on their way.
    own.wait_stream(outside)
    with torch.cuda.stream(own):
        yield
    outside.wait_stream(own)


def gradients(loss: Work, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The numbers of `loss(*inputs)`, after adding the gradients of the first one."""
    first, *others = loss(*inputs)
    first.backward()
    return (first.detach(), *(number.detach() for number in others))
