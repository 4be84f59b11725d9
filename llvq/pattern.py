"""Patterns of FX graphs, and what matching one gives: a match, or the reason there is none.

A pattern is a tree of frozen values, written in dataflow order from the root (the last node) to
its inputs. Arguments that a pattern does not name must hold their schema default, so that a mask
or a dropout can never be overlooked. Nodes inside a match must not be used outside it, unless
the pattern says `shared`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node


@dataclass(frozen=True)
class Var:
    """Any node; the same name binds the same node everywhere in a pattern."""

    name: str


@dataclass(frozen=True)
class Literal:
    """Any value that is not a node (a number, a shape, None), bound to `name`."""

    name: str


@dataclass(frozen=True)
class Call:
    """A call of one of `targets`. Build it with `call`."""

    targets: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    bind: str | None = None
    shared: bool = False


@dataclass(frozen=True)
class Either:
    """The first of `options` that leads to a whole match."""

    options: tuple[Any, ...]


def call(
    target: Any, *args: Any, bind: str | None = None, shared: bool = False, **kwargs: Any
) -> Call:
    """A call of `target` (one, or a tuple of them) with patterns as arguments, in schema order."""
    targets = target if isinstance(target, tuple) else (target,)
    return Call(targets, args, tuple(kwargs.items()), bind, shared)


def either(*options: Any) -> Either:
    return Either(options)


def maybe(target: Any, inner: Any, **kwargs: Any) -> Either:
    """`inner`, or `inner` wrapped in one call of `target`."""
    return either(call(target, inner, **kwargs), inner)


@dataclass(frozen=True)
class Match:
    """What a pattern matched: the root, every node of the pattern, and the named values."""

    root: Node
    nodes: tuple[Node, ...]
    bound: Mapping[str, Any]
    shared: frozenset[Node] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return self.bound[name]

    def get(self, name: str) -> Any:
        return self.bound.get(name)


@dataclass(frozen=True)
class Miss:
    """Why a pattern does not match, and the node that stopped it."""

    reason: str
    node: Node
    covered: tuple[Node, ...] = ()


def root_targets(pattern: Any) -> frozenset[Any]:
    """Targets that a root of this pattern can have."""
    if isinstance(pattern, Either):
        return frozenset().union(*(root_targets(option) for option in pattern.options))
    return frozenset(pattern.targets) if isinstance(pattern, Call) else frozenset()


def describe(target: Any) -> str:
    is_op = isinstance(target, torch._ops.OpOverload)
    return str(target) if is_op else f"operator.{target.__name__}"
