"""A pattern of `llvq.pattern` as text.

%x                  any tensor             $eps           any constant
a or b              alternatives           [f]?(x, ..)    x, or x wrapped in one call of f
f(..) as name       a call that is bound   f!(..)         a call that others may use too
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvq.pattern import Call, Either, Literal, Var, describe

WIDTH = 88
INDENT = "  "


def print_pattern(pattern: Any) -> str:
    """The pattern on one line where it fits, else one argument per line."""
    return "\n".join(_lines(pattern, WIDTH))


def _lines(pattern: Any, width: int) -> list[str]:
    if isinstance(pattern, Call):
        return _call(pattern, width, optional=False)
    if isinstance(pattern, Either):
        return _either(pattern, width)
    if isinstance(pattern, (list, tuple)):
        return _enclose("[", [("", item) for item in pattern], "]", width)
    return [_leaf(pattern)]


def _leaf(value: Any) -> str:
    if isinstance(value, Var):
        return f"%{value.name}"
    if isinstance(value, Literal):
        return f"${value.name}"
    return repr(value) if isinstance(value, str) else str(value).removeprefix("torch.")


def _call(pattern: Call, width: int, *, optional: bool) -> list[str]:
    targets = "|".join(describe(target).removesuffix(".default") for target in pattern.targets)
    name = f"[{targets}]?" if optional else targets
    arguments = [("", argument) for argument in pattern.args]
    arguments += [(f"{key}=", value) for key, value in pattern.kwargs]
    bound = f" as {pattern.bind}" if pattern.bind else ""
    shared = "!" if pattern.shared else ""
    return _enclose(f"{name}{shared}(", arguments, f"){bound}", width)


def _either(pattern: Either, width: int) -> list[str]:
    first = pattern.options[0]
    wraps = len(pattern.options) == 2 and isinstance(first, Call) and bool(first.args)
    if wraps and first.args[0] == pattern.options[1]:
        return _call(first, width, optional=True)
    options = [_lines(option, width) for option in pattern.options]
    inline = " or ".join(option[0] for option in options)
    if all(len(option) == 1 for option in options) and len(inline) <= width:
        return [inline]
    return [line for i, option in enumerate(options) for line in (["or"] if i else []) + option]


def _enclose(start: str, parts: Sequence[tuple[str, Any]], end: str, width: int) -> list[str]:
    """`parts` are (what comes before, pattern); one line, or one part per line."""
    bodies = []
    for label, part in parts:
        first, *rest = _lines(part, width - len(INDENT))
        bodies.append([label + first, *rest])
    inline = f"{start}{', '.join(body[0] for body in bodies)}{end}"
    if all(len(body) == 1 for body in bodies) and len(inline) <= width:
        return [inline]
    body = [f"{INDENT}{line}" for part in bodies for line in (*part[:-1], part[-1] + ",")]
    return [start, *body, end]
