"""The functions behind the names of implementations: how an llvq op is run on a target.

Each takes a launcher (`triton/specialize.py`), and then what the op's schema says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from llvq.backends.base import TORCH, TRITON
from llvq.errors import KernelError

Implementation = Callable[..., Any]
# Imported when one is needed: only a machine that compiles or runs kernels has Triton.
TABLES = {TRITON: "llvq.backends.triton.ops", TORCH: "llvq.backends.torch_ops"}


def find_implementation(name: str, op: str) -> Implementation:
    """What runs the llvq op `op` under the name of an implementation. Raises KernelError."""
    kind, _, variant = name.partition(":")
    key = f"{op}:{variant}" if variant else op
    found = table(kind).get(key) if kind in TABLES else None
    if found is None:
        raise KernelError(
            f"there is no implementation {name!r} of llvq.{op}",
            because="the box was written with another version of llvq",
            fix="export the program again, with the llvq that runs it",
        )
    return found


def table(name: str) -> Mapping[str, Implementation]:
    """`op` or `op:variant` -> function, of one kind of implementation.

    Raises KernelError where Triton is not installed.
    """
    try:
        ops: Mapping[str, Implementation] = import_module(TABLES[name]).OPS
    except ModuleNotFoundError as error:
        raise KernelError(
            "kernels cannot be compiled or launched here",
            because=f"Python has no module {error.name}",
            fix="pip install llvq[gpu]",
        ) from error
    return ops
