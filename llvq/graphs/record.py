"""One node of a graph document: the fields, and what each of them may be.

Targets and names end up in Python source that FX generates and executes, so that they are held to
plain identifiers here, before anything is built.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llvq.errors import ArtifactError

_FIELDS = {
    "name": str,
    "op": str,
    "target": str,
    "args": list,
    "kwargs": dict,
    "val": object,
    "module": str,
    "source": str,
    "llvq": object,
}
_NODE_OPS = ("placeholder", "get_attr", "call_function", "output")
_MODULE = re.compile(r"[!-~]*")
_SOURCE = re.compile(r"([^\s\"]+:\d+)?")
_WEIGHT = re.compile(r"\w+(\.\w+)*", re.ASCII)
# Names that the generated `forward` uses for itself.
_RESERVED = frozenset({"self", "torch", "device", "inf", "nan", "fx_pytree", "pytree"})
_MODULE_ATTRIBUTES = frozenset(dir(torch.fx.GraphModule)) | frozenset(vars(torch.nn.Module()))


@dataclass(frozen=True)
class Record:
    """`args` to `val` and `llvq` are in the encoding of `values.py`; `source` is `dit.py:88`."""

    name: str
    op: str
    target: str
    args: list[Any]
    kwargs: dict[str, Any]
    val: Any
    module: str
    source: str
    llvq: Any


def parse(document: Any) -> list[Record]:
    """The nodes of a graph document, in order. Raises ArtifactError that names the node."""
    if not isinstance(document, Mapping) or not isinstance(document.get("nodes"), list):
        raise bad_graph("the graph is not a list of nodes")
    records: list[Record] = []
    for index, raw in enumerate(document["nodes"]):
        try:
            records.append(_record(raw))
        except ValueError as error:
            raise bad_graph(str(error), where=f"node {_name_of(raw, index)}") from error
    _check_order(records)
    return records


def bad_graph(what: str, *, where: str | None = None) -> ArtifactError:
    return ArtifactError(
        what,
        where=where,
        because="a stage graph holds only what this version of llvq can check and run",
        fix="write the graph again, with the llvq that is installed here",
    )


def _record(raw: Any) -> Record:
    if not isinstance(raw, Mapping) or set(raw) != set(_FIELDS):
        raise ValueError(f"a node does not have exactly the fields {', '.join(_FIELDS)}")
    for field, kind in _FIELDS.items():
        if not isinstance(raw[field], kind):
            raise ValueError(f"field {field!r} is a {type(raw[field]).__name__}")
    record = Record(**raw)
    if not is_name(record.name):
        raise ValueError(f"{record.name!r} is not a legal node name")
    if record.op not in _NODE_OPS:
        raise ValueError(f"node kind {record.op!r} is not one of {', '.join(_NODE_OPS)}")
    for key in record.kwargs:
        if not _is_identifier(key):
            raise ValueError(f"{key!r} is not the name of an argument")
    if not _MODULE.fullmatch(record.module) or not _SOURCE.fullmatch(record.source):
        raise ValueError(f"{record.module!r} {record.source!r} is not a module and a source line")
    _check_target(record)
    return record


def _check_target(record: Record) -> None:
    if record.op == "call_function":
        return
    if record.kwargs or len(record.args) != (record.op == "output"):
        raise ValueError(f"a node of kind {record.op} has other arguments than it may")
    if record.op == "placeholder" and not is_name(record.target):
        raise ValueError(f"{record.target!r} is not a legal input name")
    if record.op == "get_attr":
        first = record.target.split(".")[0]
        if not _WEIGHT.fullmatch(record.target) or first in _MODULE_ATTRIBUTES:
            raise ValueError(f"{record.target!r} is not a legal weight name")


def _check_order(records: list[Record]) -> None:
    if [r.op for r in records[-1:]] != ["output"] or any(r.op == "output" for r in records[:-1]):
        raise bad_graph("the graph does not end with its one output node")
    for what, names in (
        ("node", [r.name for r in records]),
        ("input", [r.target for r in records if r.op == "placeholder"]),
    ):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise bad_graph(f"{what} {name!r} is defined twice")
            seen.add(name)


def _is_identifier(name: str) -> bool:
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


def is_name(name: str) -> bool:
    return _is_identifier(name) and name not in _RESERVED


def _name_of(raw: Any, index: int) -> str:
    name = raw.get("name") if isinstance(raw, Mapping) else None
    return name[:80] if isinstance(name, str) else f"#{index}"
