"""What a graph allocates and gives back while it runs, in order, found without running it.

Calls run on `meta`, under a mode that sees every tensor that is made: the results of ops, and what
the Python of a kernel's launch allocates for itself. What a library allocates within an op is not
seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode

from llvq.graphs.on_meta import Call, checked_call, run_on_meta

# The number of an allocation, and its bytes; None when it is given back.
Event = tuple[int, int | None]


class Storages(TorchDispatchMode):
    """Notes storages of a device as they come and go while the mode is on, but those of `held`."""

    def __init__(self, device: str, held: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.device = device
        self.events: list[Event] = []
        self.numbers: dict[int, int] = {}
        self.held = held
        self._refs: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            if tensor.device.type != self.device:
                continue
            self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.held or key in self.numbers:
            return
        number = len(self._refs)
        self.numbers[key] = number
        self._refs[number] = weakref.ref(storage, lambda _: self._gone(key, number))
        self.events.append((number, storage.nbytes()))

    def _gone(self, key: int, number: int) -> None:
        self.events.append((number, None))
        del self.numbers[key]


@dataclass(frozen=True)
class Allocations:
    """`steps` has the events of each node. `kept` is what the graph returns, and not given back."""

    steps: tuple[tuple[str, tuple[Event, ...]], ...]
    kept: frozenset[int]

    @property
    def events(self) -> Iterator[Event]:
        return (event for _, events in self.steps for event in events)

    @property
    def peak(self) -> tuple[int, str]:
        """The most bytes that are live at once, and the node during which they are."""
        sizes: dict[int, int] = {}
        live, most, where = 0, 0, ""
        for name, events in self.steps:
            for number, nbytes in events:
                live += -sizes[number] if nbytes is None else nbytes
                sizes[number] = nbytes or 0
                if live > most:
                    most, where = live, name
        return most, where


def allocations(gm: GraphModule, call: Call | None = None) -> Allocations:
    """Inputs and weights do not count: their owner holds them. `call` runs calls on `meta`, as for
    `run_on_meta`. Raises ArtifactError."""
    watch = _Watch(call or checked_call)
    with Storages("meta") as storages:
        watch.storages = storages
        values = run_on_meta(gm, call=watch)
        owned = {key for node, value in values.items() if node.op in ("placeholder", "get_attr")
                 for key in _keys(value)}  # fmt: skip
        last = _last_readers(gm, values)
        numbers = {k: n for k, n in storages.numbers.items() if k not in owned}
        *_, output = gm.graph.nodes
        kept = frozenset(numbers[key] for key in _keys(values[output]) if key in numbers)
        foreign = {storages.numbers[key] for key in owned if key in storages.numbers}
    steps = []
    for node in gm.graph.nodes:
        made = [event for event in watch.events.get(node, ()) if event[0] not in foreign]
        dead = (numbers[key] for key in last.get(node, ()) if key in numbers)
        made += [(number, None) for number in dead if number not in kept]
        steps.append((node.name, tuple(made)))
    return Allocations(tuple(steps), kept)


class _Watch:
    """Runs calls, and notes what each allocated, and gave back before it returned."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.events: dict[Node, list[Event]] = {}
        self.storages: Storages

    def __call__(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = len(self.storages.events)
        value = self.call(node, args, kwargs)
        self.events[node] = self.storages.events[before:]
        return value


def _last_readers(gm: GraphModule, values: Mapping[Node, Any]) -> dict[Node, list[int]]:
    """The storages that nobody reads behind a node, as in the Python that FX generates."""
    last: dict[int, Node] = {}
    for node in gm.graph.nodes:
        for source in (*node.all_input_nodes, node):
            last |= dict.fromkeys(_keys(values[source]), node)
    found: dict[Node, list[int]] = {}
    for key, node in last.items():
        found.setdefault(node, []).append(key)
    return found


def _keys(value: Any) -> list[int]:
    return [tensor.untyped_storage()._cdata for tensor in tensors_of(value)]


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))
