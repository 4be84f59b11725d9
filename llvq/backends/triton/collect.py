"""Which kernels the graphs of a box launch, found without a GPU by running them on `meta`.

A graph is run once for each length of history that a video can meet, with a launcher that notes
every launch. What an op of ours returns is held against what the graph records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule, Node

from llvq.backends.base import REFERENCE, is_compiled
from llvq.backends.implementations import find_implementation
from llvq.backends.triton.launchers import Collector
from llvq.backends.triton.specialize import Specialization
from llvq.dialect import DIALECT
from llvq.errors import TargetError
from llvq.graphs.on_meta import MISUSE, checked_call, layout, run_on_meta
from llvq.graphs.write import module_path, source_line
from llvq.runtime.bind import implementation_of, op_of
from llvq.runtime.contract import InputSpec


@dataclass(frozen=True)
class Call:
    """One call of an op, its arguments on `meta`; `where` is its node, module and source line."""

    op: str
    impl: str
    where: str
    arguments: Mapping[str, Any]


@dataclass
class Launches:
    """Every kernel of some graphs, and calls that launch all of them between them.

    `made_by` has the first call that launches a kernel; `calls` those, and one of every op that a
    library runs.
    """

    kernels: dict[Specialization, Any] = field(default_factory=dict)
    made_by: dict[Specialization, Call] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def note(self, call: Call, kernels: Mapping[Specialization, Any]) -> None:
        new = {wanted: kernel for wanted, kernel in kernels.items() if wanted not in self.kernels}
        if new or (call.op, call.impl) not in {(done.op, done.impl) for done in self.calls}:
            self.calls.append(call)
        self.kernels |= new
        self.made_by |= dict.fromkeys(new, call)


def collect(
    stages: Mapping[str, GraphModule], inputs: Mapping[str, Sequence[InputSpec]]
) -> Launches:
    """The launches of lowered stage graphs, which are left as they are.

    Raises TargetError naming op and node: an op that refuses the arguments of a node, or returns
    what the graph does not say.
    """
    found = Launches()
    for name, gm in stages.items():
        for shapes in _buckets(gm, inputs[name]):
            run_on_meta(gm, shapes=shapes, call=_Noting(found))
    return found


def launched_by(call: Call) -> tuple[Any, dict[Specialization, Any]]:
    """What a call of one of our kernels returns on `meta`, and the kernels that it launches.

    Raises TargetError.
    """
    collector = Collector()
    try:
        value = find_implementation(call.impl, call.op)(collector, **call.arguments)
    except MISUSE as error:
        raise TargetError(
            f"llvq.{call.op} cannot be compiled",
            where=call.where,
            because=f"{type(error).__name__}: {error}",
            fix="choose another target, or exclude the layer in the recipe",
        ) from error
    return value, collector.wanted


def _buckets(gm: GraphModule, inputs: Sequence[InputSpec]) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of the input that has several; one empty choice if none has.

    An empty one comes last: a call that is kept as a check then reads what the input names.
    """
    places = [node for node in gm.graph.nodes if node.op == "placeholder"]
    varying = [(node.name, spec) for node, spec in zip(places, inputs, strict=True) if spec.allowed]
    if not varying:
        yield {}
        return
    ((name, spec),) = varying
    for size in sorted(spec.allowed, key=lambda size: (size == 0, size)):
        yield {name: tuple(size if given is None else given for given in spec.shape)}


class _Noting:
    """Runs the calls of a graph on `meta`; ops of ours by the implementation of their node."""

    def __init__(self, found: Launches) -> None:
        self.found = found

    def __call__(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op, impl = op_of(node), implementation_of(node)
        if op is None or impl == REFERENCE:
            return checked_call(node, args, kwargs)
        where = "   ".join(filter(None, (node.name, module_path(node), source_line(node))))
        names = (argument.name for argument in DIALECT[op].overload._schema.arguments)
        call = Call(op, impl, where, dict(zip(names, args, strict=False)) | kwargs)
        if not is_compiled(impl):
            self.found.note(call, {})
            return checked_call(node, args, kwargs)
        value, kernels = launched_by(call)
        _check(call, value, node.meta["val"])
        self.found.note(call, kernels)
        return value


def _check(call: Call, value: Any, recorded: Any) -> None:
    found, wanted = layout(value), layout(recorded)
    if found != wanted:
        raise TargetError(
            f"llvq.{call.op} cannot be compiled",
            where=call.where,
            because=f"its implementation {call.impl} gives {found}, the op {wanted}",
            fix="this is a bug of the implementation: please report it",
        )
