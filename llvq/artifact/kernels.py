"""The kernels of a box: `kernels/<chip>/<name>.cubin`, and `kernels.json` that says what they are.

    {"kernels": {name: {"entry": symbol, "warps": 4, "shared": bytes, "scratch": bytes}},
     "checks": [{"op": "quantize", "impl": "triton", "args": {"x": {"strided": [..]}, ..}}]}

A check is a call that a loader makes on random tensors before it trusts the kernels: what the
call launches, and what the op's reference gives. Tensors are [dtype, sizes, strides].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llvq import canonical_json
from llvq.artifact.manifest import damaged
from llvq.artifact.read import Box
from llvq.graphs.values import DTYPES, decode, encode

_DTYPE_OF = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
_FIELDS = {"kernels", "checks"}


@dataclass(frozen=True)
class Entry:
    """How a kernel is launched: its symbol, warps per block, bytes of shared memory per block, and
    bytes of scratch per block in global memory."""

    entry: str
    warps: int
    shared: int
    scratch: int


@dataclass(frozen=True)
class Check:
    """A call to make before the kernels are trusted; `arguments` have their tensors on `meta`."""

    op: str
    impl: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class KernelTable:
    """What kernels.json says: kernels by name, and calls that launch all of them."""

    kernels: Mapping[str, Entry]
    checks: Sequence[Check]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for canonical JSON; `read_table` is the inverse."""
        return {
            "kernels": {name: asdict(entry) for name, entry in self.kernels.items()},
            "checks": [
                {
                    "op": c.op,
                    "impl": c.impl,
                    "args": {k: _encode(v) for k, v in c.arguments.items()},
                }
                for c in self.checks
            ],
        }


def table_file(chip: str) -> str:
    return f"kernels/{chip}/kernels.json"


def kernel_file(chip: str, name: str) -> str:
    return f"kernels/{chip}/{name}.cubin"


def read_table(box: Box, chip: str) -> KernelTable:
    """The table of the kernels of an open box. Raises ArtifactError."""
    path = box.file(table_file(chip))
    try:
        return _table(canonical_json.loads(path.read_bytes()))
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(
            f"{table_file(chip)} is not a table of kernels",
            where=str(box.path),
            because=f"{type(error).__name__}: {error}",
        ) from error


def _table(document: Mapping[str, Any]) -> KernelTable:
    if document.keys() != _FIELDS:
        raise ValueError(f"it does not have exactly the fields {', '.join(sorted(_FIELDS))}")
    kernels = {name: Entry(**entry) for name, entry in document["kernels"].items()}
    for entry in kernels.values():
        sizes = (entry.warps, entry.shared, entry.scratch)
        if not isinstance(entry.entry, str) or not all(type(n) is int and n >= 0 for n in sizes):
            raise ValueError(f"{entry} is not how a kernel is launched")
    checks = [
        Check(row["op"], row["impl"], {k: _decode(v) for k, v in row["args"].items()})
        for row in document["checks"]
    ]
    return KernelTable(kernels, checks)


def _encode(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"strided": [dtype, list(value.shape), list(value.stride())]}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return encode(value)


def _decode(tree: Any) -> Any:
    if isinstance(tree, dict) and tree.keys() == {"strided"}:
        dtype, sizes, strides = tree["strided"]
        return torch.empty_strided(sizes, strides, dtype=_DTYPE_OF[dtype], device="meta")
    if isinstance(tree, list):
        return [_decode(item) for item in tree]
    return decode(tree)
