"""An ONNX graph in the making, as plain records. Knows operators of ONNX, none of torch or llvq."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llvq.backends.onnx.elements import ELEMENT_TYPES
from llvq.backends.onnx.records import Call, Initializer, Sizes, Value, Weight


@dataclass
class Builder:
    """Calls in order and initializers by name. The same call on the same inputs is made once.

    `scope` names what is translated (it becomes part of names), `origin` where it comes from.
    """

    calls: list[Call] = field(default_factory=list)
    initializers: dict[str, Initializer] = field(default_factory=dict)
    scope: str = ""
    origin: str = ""
    _known: dict[Any, Any] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def name(self, wanted: str) -> str:
        """`wanted`, or with a number behind it if it is taken."""
        name, count = wanted, 1
        while name in self._names:
            name, count = f"{wanted}.{count}", count + 1
        self._names.add(name)
        return name

    def call(
        self,
        op: str,
        *inputs: Value | None,
        shape: Sequence[int | None] | None = None,
        dtype: torch.dtype | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """The only result of a call; dtype and shape are those of the first input if not given."""
        first = inputs[0]
        assert first is not None
        results = ((dtype or first.dtype, first.shape if shape is None else tuple(shape)),)
        return self.calls_of(op, inputs, results, domain=domain, **attributes)[0]

    def calls_of(
        self,
        op: str,
        inputs: Sequence[Value | None],
        results: Sequence[tuple[torch.dtype, Sizes]],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """A call with any number of results, each a dtype and a shape."""
        names = tuple("" if value is None else value.name for value in inputs)
        fixed = tuple(sorted(attributes.items()))
        key = (op, domain, names, fixed)
        if key not in self._known:
            outputs = tuple(
                Value(self.name(f"{self.scope}.{op}"), dtype, shape) for dtype, shape in results
            )
            self.calls.append(Call(op, domain, names, outputs, fixed, self.origin))
            self._known[key] = outputs
        found: tuple[Value, ...] = self._known[key]
        return found

    def constant(self, tensor: Tensor) -> Value:
        """A constant of this dtype; equal ones are one."""
        data = tensor.detach().cpu().contiguous()
        raw = data.flatten().view(torch.uint8).numpy().tobytes()
        key = (data.dtype, data.shape, raw)
        if key not in self._known:
            value = Value(self.name("constant"), data.dtype, tuple(data.shape))
            self.initializers[value.name] = Initializer(value, raw)
            self._known[key] = value
        known: Value = self._known[key]
        return known

    def scalar(self, number: float | int, dtype: torch.dtype) -> Value:
        return self.constant(torch.tensor(number, dtype=dtype))

    def sizes(self, *numbers: int) -> Value:
        """Numbers as ONNX takes shapes, axes and indices: int64, 1-d."""
        return self.constant(torch.tensor(numbers, dtype=torch.int64))

    def weight(self, weight: Weight, dtype: torch.dtype, shape: Sequence[int]) -> Value:
        """A weight as it lies in its file, read as this dtype and shape."""
        if weight not in self._known:
            name = self.name(f"{weight.name}.{weight.start}" if weight.start else weight.name)
            value = Value(name, dtype, tuple(shape))
            self.initializers[name] = Initializer(value, weight)
            self._known[weight] = value
        known: Value = self._known[weight]
        assert (known.dtype, known.shape) == (dtype, tuple(shape)), weight.name
        return known

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        if x.dtype == dtype:
            return x
        return self.call("Cast", x, dtype=dtype, to=ELEMENT_TYPES[dtype])

    def binary(
        self, op: str, x: Value, y: Value | float, dtype: torch.dtype | None = None
    ) -> Value:
        """Elementwise with broadcasting, in the dtype that torch promotes both to."""
        y = y if isinstance(y, Value) else self.scalar(y, x.dtype)
        common = torch.promote_types(x.dtype, y.dtype)
        sides = self.cast(x, common), self.cast(y, common)
        return self.call(op, *sides, shape=broadcast(x.shape, y.shape), dtype=dtype or common)

    def add(self, x: Value, y: Value | float) -> Value:
        return self.binary("Add", x, y)

    def sub(self, x: Value, y: Value | float) -> Value:
        return self.binary("Sub", x, y)

    def mul(self, x: Value, y: Value | float) -> Value:
        return self.binary("Mul", x, y)

    def div(self, x: Value, y: Value | float) -> Value:
        return self.binary("Div", x, y)

    def where(self, condition: Value, x: Value, y: Value) -> Value:
        shape = broadcast(condition.shape, broadcast(x.shape, y.shape))
        return self.call("Where", condition, x, y, shape=shape, dtype=x.dtype)

    def reduce(self, op: str, x: Value, axes: Sequence[int] = (), *, keep: bool = False) -> Value:
        """Over the axes named, counted from the end or the front, or over all."""
        rank = len(x.shape)
        gone = {axis % rank for axis in axes} or set(range(rank))
        kept = [(1 if i in gone else n) for i, n in enumerate(x.shape) if keep or i not in gone]
        where = self.sizes(*axes) if axes else None
        return self.call(op, *filter(None, (x, where)), shape=kept, keepdims=int(keep))

    def reshape(self, x: Value, shape: Sequence[int | None]) -> Value:
        """At most one size may be None: ONNX finds it."""
        if tuple(shape) == x.shape and None not in shape:
            return x
        sizes = self.sizes(*(-1 if size is None else size for size in shape))
        return self.call("Reshape", x, sizes, shape=shape)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        shape = [x.shape[axis] for axis in perm]
        return self.call("Transpose", x, shape=shape, perm=tuple(perm))

    def gather(self, x: Value, indices: Value, axis: int) -> Value:
        axis %= len(x.shape)
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return self.call("Gather", x, indices, shape=shape, axis=axis)

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        if len(parts) == 1:
            return parts[0]
        axis %= len(parts[0].shape)
        along = [part.shape[axis] for part in parts]
        total = None if None in along else sum(size for size in along if size is not None)
        shape = (*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :])
        return self.call("Concat", *parts, shape=shape, axis=axis)

    def matmul(self, x: Value, y: Value) -> Value:
        lead = broadcast(x.shape[:-2], y.shape[:-2])
        return self.call("MatMul", x, y, shape=(*lead, x.shape[-2], y.shape[-1]))


def broadcast(a: Sizes, b: Sizes) -> Sizes:
    """The shape of two, aligned at the end. A size that is not known stays so beside a 1."""
    width = max(len(a), len(b))
    left, right = ((1,) * (width - len(shape)) + tuple(shape) for shape in (a, b))
    return tuple(
        n if m == 1 else m if n == 1 or m is not None else n
        for m, n in zip(left, right, strict=True)
    )
