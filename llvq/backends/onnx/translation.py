"""What a translation of one operator gets: a builder, a dialect, and values as the graph has them.

A translation is a function `(t, out, *args, **kwargs)`: `out` is the recorded value of the node,
on `meta`, and arguments are what other translations gave, with the names of the operator's schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llvq.backends.onnx.builder import Builder
from llvq.backends.onnx.dialects import Dialect
from llvq.backends.onnx.records import Value, Weight
from llvq.errors import TargetError

Operand = Value | Weight | Tensor
"""A value of the graph, a weight that nobody has read yet, or what depends on no input."""

Translation = Callable[..., Any]


@dataclass
class Translator:
    """`written` collects what `write_page` stores: (layer, K or V) -> one value per page tensor."""

    b: Builder
    dialect: Dialect
    written: dict[tuple[int, int], tuple[Value, ...]] = field(default_factory=dict)

    def value(self, x: Operand) -> Value:
        """Anything as a value of the graph, in the dtype that the dialect holds it in."""
        if isinstance(x, Value):
            return x
        found = self.b.weight(x, x.dtype, x.shape) if isinstance(x, Weight) else self.b.constant(x)
        return self.b.cast(found, self.dialect.dtype(found.dtype))

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        """To a dtype of the program."""
        return self.b.cast(x, self.dialect.dtype(dtype))

    def fp32(self, x: Operand) -> Value:
        return self.b.cast(self.value(x), torch.float32)


def refuse(what: str, because: str) -> TargetError:
    """For a form of an operator that its translation does not know; where is said by the caller."""
    return TargetError(
        what,
        because=because,
        fix="leave this stage out of the export, or run the program with llvq",
    )


def joined(*tables: Mapping[str, Translation]) -> dict[str, Translation]:
    """Several tables as one."""
    table: dict[str, Translation] = {}
    for part in tables:
        assert not part.keys() & table.keys(), "two translations of one operator"
        table |= part
    return table
