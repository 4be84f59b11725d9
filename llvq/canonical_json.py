"""One spelling for one document: the JSON that llvq hashes, and a reader that takes nothing else.

Keys are sorted strings, numbers are finite, there is no white space. The reader also refuses a key
written twice, which `json` would answer with the last one.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

# One limit for every Python: its own differs by version, and repr() has another than json.
MAX_DEPTH = 100


def dumps(document: Any) -> bytes:
    """Canonical bytes of a tree of dict, list, str, int, float, bool and None (tuples are lists).

    Raises ValueError for anything else: NaN, an infinity, a key that is not a string, a tree
    deeper than MAX_DEPTH.
    """
    _check(document)
    try:
        text = json.dumps(document, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(str(error)) from error
    return text.encode("ascii")


def loads(data: bytes) -> Any:
    """The document in `data`. Raises ValueError with a sentence, whatever is wrong with it."""
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check(document)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {name!r} is there twice")
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _check(document: Any) -> None:
    pending = [(document, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if isinstance(item, dict):
            # json.dumps would turn 1 into "1": two documents, one spelling.
            for key in item:
                if not isinstance(key, str):
                    raise ValueError(f"key {key!r} is not a string")
            pending.extend((value, depth + 1) for value in item.values())
        elif isinstance(item, list | tuple):
            pending.extend((value, depth + 1) for value in item)
