"""Weights that lie in the memory of the host, and are copied to the device ahead of their use.

Which ones and in what order is data (`graphs/weight_groups.py`). A graph keeps reading its weights
by name: they are views of a few slots on the device. Before the first reader of a group a call is
put into the graph that waits for its copy, and behind the last one a call that has the next group
copied into the same slot, on a stream of its own, while the graph goes on. Nothing waits on the
host. The same runs on a CPU, where a copy is done when its call returns.

Stages of a family share slots: they run one after the other, as those that denoise do, and those
that decode. So two sessions of one such model do not run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule

from llvq import graphs
from llvq.graphs.weight_groups import SLOTS, Group, Limits, aligned, slot_bytes
from llvq.runtime.executable import DECODING, Streamed

# Memory of the host is taken in pieces like this: PyTorch pins powers of two.
BLOCK = 2**28
LIMITS = Limits()
Pairs = Sequence[tuple[Tensor, Tensor]]


class Copier(Protocol):
    """Copies (target, source) pairs beside what the current stream computes."""

    def copy(self, pairs: Pairs, after: Any) -> Any:
        """Begin once `after` has been passed; gives the mark of its end."""

    def mark(self) -> Any:
        """What the current stream has been given up to here."""

    def wait(self, mark: Any) -> None:
        """The current stream goes on once `mark` has been passed."""


class CudaCopier:
    """Copies on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def copy(self, pairs: Pairs, after: torch.cuda.Event | None) -> torch.cuda.Event:
        with torch.cuda.stream(self.stream):
            if after is not None:
                self.stream.wait_event(after)
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
                target.record_stream(self.stream)
            return self.stream.record_event()

    def mark(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)


class CpuCopier:
    """Copies at once."""

    def copy(self, pairs: Pairs, after: Any) -> None:
        for target, source in pairs:
            target.copy_(source)

    def mark(self) -> None:
        return None

    def wait(self, mark: None) -> None:
        return None


def copier_of(device: torch.device) -> Copier:
    return CudaCopier(device) if device.type == "cuda" else CpuCopier()


class HostMemory:
    """Keeps weights in the memory of the host; pinned, if they are for a GPU."""

    def __init__(self, device: torch.device, moving: Collection[str]) -> None:
        """`moving` are those that are kept."""
        self.pinned, self.moving = device.type == "cuda", frozenset(moving)
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """A copy on the host, or the tensor itself."""
        if name not in self.moving:
            return tensor
        if self._used + tensor.nbytes > len(self._block):
            size = max(BLOCK if self.pinned else 0, tensor.nbytes)
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)
            self._used = 0
        room = self._block[self._used : self._used + tensor.nbytes]
        self._used += aligned(tensor.nbytes)
        kept = room.view(tensor.dtype).view(tensor.shape)
        return kept.copy_(tensor)


class Slots:
    """Memory on the device that groups of weights take turns in."""

    def __init__(self, nbytes: int, device: torch.device, copier: Copier) -> None:
        self.memory = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        self.copier = copier
        self._holds: list[tuple[str, ...]] = [()] * SLOTS
        self._ready: list[Any] = [None] * SLOTS
        self._free: list[Any] = [None] * SLOTS
        self._taken: set[int] = set()

    def fill(self, slot: int, names: tuple[str, ...], pairs: Pairs) -> None:
        """Have a group copied into a slot that nobody reads any more, if it is not there."""
        if self._holds[slot] != names:
            self._ready[slot] = self.copier.copy(pairs, self._free[slot])
            self._holds[slot] = names

    def take(self, slot: int) -> None:
        """What comes after this may read the slot."""
        if self._ready[slot] is not None:
            self.copier.wait(self._ready[slot])
        self._taken.add(slot)

    def release(self, slot: int) -> None:
        self._free[slot] = self.copier.mark()
        self._taken.discard(slot)

    def release_all(self) -> None:
        """Of a call that was not finished."""
        for slot in tuple(self._taken):
            self.release(slot)


class WeightStream:
    """The groups of one graph, on their way through slots."""

    def __init__(self, groups: Sequence[Group], slots: Slots, host: Mapping[str, Tensor]) -> None:
        self.slots, self.names = slots, [group.names for group in groups]
        self.pairs = [
            [(_view(slots.memory[place % SLOTS], at, host[name]), host[name])
             for name, at in zip(group.names, group.offsets, strict=True)]
            for place, group in enumerate(groups)
        ]  # fmt: skip

    @property
    def views(self) -> dict[str, Tensor]:
        """Weights as the graph reads them."""
        every = zip(self.names, self.pairs, strict=True)
        return {name: view for names, pairs in every
                for name, (view, _) in zip(names, pairs, strict=True)}  # fmt: skip

    def begin(self, place: int) -> None:
        """Before the first reader of a group."""
        if place == 0:
            self.slots.release_all()
            self._fill_first()
        self.slots.take(place % SLOTS)

    def end(self, place: int) -> None:
        """Behind its last. Behind the last of all, the first ones are fetched again: the next call
        is likely to want them."""
        self.slots.release(place % SLOTS)
        if place + SLOTS < len(self.names):
            self._fill(place + SLOTS)
        elif place == len(self.names) - 1:
            self._fill_first()

    def _fill_first(self) -> None:
        for place in range(min(SLOTS, len(self.names))):
            self._fill(place)

    def _fill(self, place: int) -> None:
        self.slots.fill(place % SLOTS, self.names[place], self.pairs[place])


def _view(memory: Tensor, offset: int, like: Tensor) -> Tensor:
    return memory[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


class _Step:
    """A call of a stream, as a target of FX calls."""

    def __init__(self, name: str, function: Callable[[int], None]) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = f"{name}_group"
        self.__module__ = __name__

    def __call__(self, place: int) -> None:
        self.function(place)


def families(names: Iterable[str]) -> list[list[str]]:
    """Stages that run one after the other: those that decode have a thread of their own."""
    decoding, others = list[str](), list[str]()
    for name in names:
        (decoding if name in DECODING else others).append(name)
    return [family for family in (others, decoding) if family]


def streamed(groups: Mapping[str, Sequence[Group]]) -> Streamed:
    """What groups of all stages come to."""
    every = {w.name: w.nbytes for each in groups.values() for group in each for w in group.weights}
    slots = [slot_bytes({n: groups[n] for n in names}) * SLOTS for names in families(groups)]
    copied = {name: sum(w.nbytes for group in each for w in group.weights)
              for name, each in groups.items()}  # fmt: skip
    return Streamed(sum(every.values()), sum(slots), copied, tuple(sorted(every)))


def stream_weights(
    gms: Mapping[str, GraphModule],
    groups: Mapping[str, Sequence[Group]],
    device: torch.device,
    copier: Copier | None = None,
) -> None:
    """Have a family of graphs read the weights of their groups out of slots on the device; now they
    hold them where `HostMemory` has put them."""
    family = {name: groups[name] for name in gms}
    slots = Slots(slot_bytes(family), device, copier or copier_of(device))
    for name, gm in gms.items():
        weights = {weight: graphs.weight(gm, weight) for weight in graphs.weights(gm)}
        stream = WeightStream(groups[name], slots, weights)
        _insert(gm, groups[name], stream)
        graphs.attach(gm, weights | stream.views)
        gm.recompile()


def _insert(gm: GraphModule, groups: Sequence[Group], stream: WeightStream) -> None:
    """Put the calls of a stream into its graph."""
    nodes = list(gm.graph.nodes)
    begin, end = _Step("begin", stream.begin), _Step("end", stream.end)
    for place, group in enumerate(groups):
        with gm.graph.inserting_before(nodes[group.first]):
            gm.graph.call_function(begin, (place,))
    for place, group in reversed(list(enumerate(groups))):
        with gm.graph.inserting_after(nodes[group.last]):
            gm.graph.call_function(end, (place,))
