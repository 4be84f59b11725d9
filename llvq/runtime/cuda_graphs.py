"""A stage as CUDA graphs: what it launches is recorded once, and then replayed in one call.

A recording reads its inputs where they lay, so every input that changes is copied into a buffer
that stays. There is one recording for each length of history. The first call of a length runs as
it is, which sets up what libraries set up at their first call, the second is recorded. Both take
from the same memory, since no two of them run at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from llvq.runtime.contract import check
from llvq.runtime.executable import CompiledStage
from llvq.runtime.streams import Streams

Results = tuple[Tensor, ...]


class Recorder(Protocol):
    """Records a call, and gives what replays it and the tensors that hold its results."""

    def __call__(self, run: Callable[[], Results]) -> tuple[Callable[[], None], Results]: ...

    def warm(self, run: Callable[[], Results]) -> Results:
        """The results of a call that is not recorded."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share their memory: no two of them run at once.

    Threads that record at once, with the same `lock`, wait for each other.
    """

    def __init__(self, stream: torch.cuda.Stream, lock: threading.Lock) -> None:
        self.stream, self.lock = stream, lock
        with torch.cuda.device(stream.device):
            self.pool = torch.cuda.MemPool()
        self.handle: Any = self.pool.id  # a tuple that PyTorch has two types for

    def warm(self, run: Callable[[], Results]) -> Results:
        """In the memory of the recordings, where what is free belongs to the recording stream."""
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        # A stream's context leaves its device current, which the pool's counts on.
        with torch.cuda.stream(self.stream), torch.cuda.use_mem_pool(self.pool):
            results = run()
        outside.wait_stream(self.stream)
        return tuple(result.clone() for result in results)

    def __call__(self, run: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        graph = torch.cuda.CUDAGraph()
        # Other threads go on: what they do on their streams is not part of this recording.
        recording = torch.cuda.graph(
            graph, pool=self.handle, stream=self.stream, capture_error_mode="thread_local"
        )
        with self.lock, torch.cuda.device(self.stream.device), recording:
            results = run()
        return graph.replay, results


def recorder(streams: Streams, device: torch.device, use: str) -> Recorder | None:
    """What records on a device: nothing on a CPU. `use`: what is recorded."""
    stream = streams.of(device, f"record {use}")
    return None if stream is None else CudaRecorder(stream, streams.recording)


class Buffers:
    """Where inputs lie, by name and shape, for every stage that takes them.

    Those `in_place` stay where their owner has them, since stages write to them. No other may be
    changed in place: a tensor that is given again is not copied again.
    """

    def __init__(self, in_place: Collection[str]) -> None:
        self.in_place = frozenset(in_place)
        self._held: dict[tuple[str, torch.Size], Tensor] = {}
        self._copied: dict[tuple[str, torch.Size], Tensor] = {}

    def place(self, name: str, value: Tensor) -> Tensor:
        """The tensor to read `value` from."""
        if name in self.in_place:
            return value
        key = (name, value.shape)
        if key not in self._held:
            self._held[key] = torch.empty_like(value, memory_format=torch.contiguous_format)
        if self._copied.get(key) is not value:
            self._held[key].copy_(value, non_blocking=True)
            self._copied[key] = value
        return self._held[key]


class RecordedStage:
    """A compiled stage that replays what it recorded; called as the stage is."""

    def __init__(self, stage: CompiledStage, buffers: Buffers, record: Recorder) -> None:
        self.stage, self.buffers, self.record = stage, buffers, record
        self._warm: set[Any] = set()
        self._recorded: dict[Any, tuple[Callable[[], None], Results]] = {}

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Results are the caller's: no later call writes to them."""
        specs = self.stage.inputs
        given = {spec.name: values[spec.name] for spec in specs if spec.name in values}
        check(specs, given, stage=self.stage.name)
        with torch.inference_mode():
            placed = [self.buffers.place(name, value) for name, value in given.items()]
            results = self._run(placed)
        return dict(zip(self.stage.outputs, results, strict=True))

    def _run(self, placed: list[Tensor]) -> Results:
        where = tuple((tensor.data_ptr(), tensor.shape) for tensor in placed)
        if where not in self._warm:
            self._warm.add(where)
            return self.record.warm(_Call(self.stage, placed))
        if where not in self._recorded:
            self._recorded[where] = self.record(_Call(self.stage, placed))
        replay, results = self._recorded[where]
        replay()
        return tuple(result.clone() for result in results)


class _Call:
    """One call of a stage on tensors that stay where they are."""

    def __init__(self, stage: CompiledStage, placed: list[Tensor]) -> None:
        self.stage, self.placed = stage, placed

    def __call__(self) -> Results:
        return tuple(self.stage.graph(*self.placed))
