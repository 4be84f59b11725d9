"""The matcher: tries a pattern at a node, with backtracking, and explains itself when it fails."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.fx import Node

from llvq.pattern import Call, Either, Literal, Match, Miss, Var, describe, root_targets

REQUIRED = object()
COMMUTATIVE = frozenset({"aten.add.Tensor", "aten.mul.Tensor"})


@dataclass
class _Trace:
    """The best explanation so far: the deepest failure, rather at a call than at an input."""

    best: Miss | None = None

    def fail(self, reason: str, node: Node, state: Match) -> None:
        miss = Miss(reason, node, state.nodes)
        if self.best is None or _depth(miss) > _depth(self.best):
            self.best = miss


def _depth(miss: Miss) -> tuple[int, bool]:
    return len(miss.covered), miss.node.op == "call_function"


@lru_cache(maxsize=1024)
def _parameters(target: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (argument.name, argument.default_value if argument.has_default_value() else REQUIRED)
        for argument in target._schema.arguments
    )


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by schema name, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): value for i, value in enumerate(node.args)}
    names = _parameters(node.target)
    given = dict(zip((name for name, _ in names), node.args, strict=False)) | dict(node.kwargs)
    return {name: given.get(name, default) for name, default in names}


def match(pattern: Any, root: Node) -> Match | Miss:
    """Match `pattern` with its root at `root`."""
    trace = _Trace()
    for found in _solve(pattern, root, root, Match(root, (), {}), trace):
        escape = _escape(found)
        if escape is None:
            return found
        trace.best = escape
    assert trace.best is not None
    return trace.best


def _solve(pattern: Any, value: Any, user: Node, state: Match, trace: _Trace) -> Iterator[Match]:
    """Every way to extend `state` so that `pattern` matches `value`, an argument of `user`."""
    if isinstance(pattern, Either):
        yield from _solve_either(pattern, value, user, state, trace)
    elif isinstance(pattern, Var):
        yield from _bind(pattern.name, value, user, state, trace, node=True)
    elif isinstance(pattern, Literal):
        yield from _bind(pattern.name, value, user, state, trace, node=False)
    elif isinstance(pattern, Call):
        yield from _solve_call(pattern, value, user, state, trace)
    elif isinstance(pattern, (list, tuple)):
        yield from _solve_sequence(tuple(pattern), value, user, state, trace)
    elif pattern == value and isinstance(pattern, bool) == isinstance(value, bool):
        yield state
    else:
        trace.fail(f"expected {pattern!r}, found {value!s}", user, state)


def _solve_either(
    pattern: Either, value: Any, user: Node, state: Match, trace: _Trace
) -> Iterator[Match]:
    targets = root_targets(pattern)
    if _must_be_call(pattern) and not _is_call(value, targets):
        _fail_call(sorted(targets, key=describe), value, user, state, trace)
        return
    for option in pattern.options:
        yield from _solve(option, value, user, state, trace)


def _bind(
    name: str, value: Any, user: Node, state: Match, trace: _Trace, *, node: bool
) -> Iterator[Match]:
    if isinstance(value, Node) is not node:
        wanted = "a tensor" if node else "a constant"
        trace.fail(f"expected {wanted} for {name!r}, found {value!s}", user, state)
    elif name in state.bound and state.bound[name] != value:
        trace.fail(f"{name!r} is {state.bound[name]} in one place and {value} here", user, state)
    else:
        bound = {**state.bound, name: value}
        yield Match(state.root, state.nodes, bound, state.shared)


def _solve_call(
    pattern: Call, value: Any, user: Node, state: Match, trace: _Trace
) -> Iterator[Match]:
    if not _is_call(value, pattern.targets):
        _fail_call(pattern.targets, value, user, state, trace)
        return
    bound = {**state.bound, pattern.bind: value} if pattern.bind else state.bound
    shared = state.shared | {value} if pattern.shared else state.shared
    inside = Match(state.root, (*state.nodes, value), bound, shared)
    for wanted in _argument_patterns(pattern, value):
        yield from _solve_arguments(wanted, value, inside, trace)


def _must_be_call(pattern: Any) -> bool:
    if isinstance(pattern, Either):
        return all(_must_be_call(option) for option in pattern.options)
    return isinstance(pattern, Call)


def _is_call(value: Any, targets: Collection[Any]) -> bool:
    return isinstance(value, Node) and value.op == "call_function" and value.target in targets


def _fail_call(targets: Sequence[Any], value: Any, user: Node, state: Match, trace: _Trace) -> None:
    names = " or ".join(describe(target) for target in targets)
    if not isinstance(value, Node):
        trace.fail(f"expected {names}, found {value!s}", user, state)
        return
    found = describe(value.target) if value.op == "call_function" else f"the {value.op}"
    trace.fail(f"expected {names}, found {found} {value.name}", value, state)


def _argument_patterns(pattern: Call, node: Node) -> Iterator[dict[str, Any]]:
    """Patterns by argument name; twice, in both orders, where the op commutes."""
    names = list(arguments(node))
    named = dict(pattern.kwargs)
    yield dict(zip(names, pattern.args, strict=False)) | named
    if len(pattern.args) == 2 and str(node.target) in COMMUTATIVE:
        yield dict(zip(names, reversed(pattern.args), strict=False)) | named


def _solve_arguments(
    wanted: dict[str, Any], node: Node, state: Match, trace: _Trace
) -> Iterator[Match]:
    found = arguments(node)
    defaults = dict(_parameters(node.target)) if hasattr(node.target, "_schema") else {}
    for name, value in found.items():
        if name not in wanted and value != defaults.get(name):
            reason = f"argument {name!r} is {value!s}, the rule knows only its default"
            trace.fail(reason, node, state)
            return
    yield from _solve_all([(p, found[name]) for name, p in wanted.items()], node, state, trace)


def _solve_sequence(
    patterns: tuple[Any, ...], value: Any, user: Node, state: Match, trace: _Trace
) -> Iterator[Match]:
    if not isinstance(value, (list, tuple)) or len(value) != len(patterns):
        trace.fail(f"expected {len(patterns)} values, found {value!s}", user, state)
        return
    yield from _solve_all(list(zip(patterns, value, strict=True)), user, state, trace)


def _solve_all(
    pairs: list[tuple[Any, Any]], user: Node, state: Match, trace: _Trace
) -> Iterator[Match]:
    if not pairs:
        yield state
        return
    (pattern, value), *rest = pairs
    for extended in _solve(pattern, value, user, state, trace):
        yield from _solve_all(rest, user, extended, trace)


def _escape(found: Match) -> Miss | None:
    """A node inside the match that something outside still needs."""
    inside = set(found.nodes)
    for node in found.nodes:
        outside = [user for user in node.users if user not in inside]
        if node is not found.root and node not in found.shared and outside:
            reason = (
                f"{node.name} has {len(node.users)} users and the rule needs them inside the "
                f"match; another is {outside[0].name}"
            )
            return Miss(reason, node, found.nodes)
    return None
