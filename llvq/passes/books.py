"""Books: the account of every site of every rule. They must balance, or the compile ends.

sites = hits + excluded + tolerated + misses (+ stopped, when a bisect limit cut the run short).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch.fx import Node

from llvq.errors import MissError
from llvq.pattern import Miss
from llvq.program import module_path, where


@dataclass(frozen=True)
class MissRecord:
    """A site that was left alone: why, and where to look."""

    reason: str
    node: str
    module: str
    where: str


@dataclass
class Book:
    """The account of one rule over one run of its pass."""

    rule: str
    sites: int = 0
    hits: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    misses: list[MissRecord] = field(default_factory=list)
    tolerated: Counter[str] = field(default_factory=Counter)
    stopped: int = 0

    @property
    def balanced(self) -> bool:
        accounted = self.hits + self.excluded.total() + len(self.misses)
        return self.sites == accounted + self.tolerated.total() + self.stopped

    def to_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "sites": self.sites,
            "hits": self.hits,
            "excluded": dict(self.excluded),
            "tolerated": dict(self.tolerated),
            "misses": [vars(miss) for miss in self.misses],
            "stopped": self.stopped,
        }


def account_miss(book: Book, site: Node, miss: Miss, allowed: Mapping[str, str]) -> None:
    """Enter a missed site: tolerated where the recipe names it, else a miss."""
    path = module_path(site)
    glob = next((glob for glob in allowed if fnmatchcase(path, glob)), None)
    if glob is not None:
        book.tolerated[glob] += 1
    else:
        detail = miss.reason if miss.node is site else f"{miss.reason}, at {where(miss.node)}"
        book.misses.append(MissRecord(detail, site.name, path, where(site)))


def refuse_misses(pass_name: str, books: list[Book], *, tolerable: bool) -> None:
    """A miss that nothing covers ends the compilation.

    `tolerable` says whether a recipe may accept one: not where later passes need every site.
    """
    for book in books:
        if book.misses:
            first = book.misses[0]
            raise MissError(
                f"{pass_name}: rule {book.rule} left {len(book.misses)} of {book.sites} sites",
                where=first.where,
                because=first.reason,
                fix=_accept(pass_name, first) if tolerable else _respell(pass_name),
            )
        assert book.balanced, f"the book of {book.rule} does not balance: {book}"


def _accept(pass_name: str, miss: MissRecord) -> str:
    glob = miss.module or "*"
    return f'accept it in the recipe: [allow_miss."{pass_name}"] "{glob}" = "why"'


def _respell(pass_name: str) -> str:
    return f"write the model so that it matches; docs/passes.md shows what {pass_name} looks for"
