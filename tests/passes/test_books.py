"""Books: every site is accounted for, and an account that nothing covers is an error."""

from __future__ import annotations

from collections import Counter

import pytest
from torch.fx import Graph, Node

from llvq.errors import MissError
from llvq.passes.books import Book, MissRecord, account_miss, refuse_misses
from llvq.pattern import Miss


def site(path: str = "blocks.0.attn") -> tuple[Node, Node]:
    """A node in the module at `path`, and its input."""
    graph = Graph()
    source = graph.placeholder("x")
    node = graph.call_function(abs, (source,))
    node.meta["nn_module_stack"] = {"key": (path, object)}
    node.meta["stack_trace"] = '  File "model.py", line 7, in forward\n    return abs(x)'
    return node, source


def missed(path: str, allowed: dict[str, str]) -> Book:
    node, _ = site(path)
    book = Book("rule", sites=1)
    account_miss(book, node, Miss("it is wrong", node), allowed)
    return book


def test_a_miss_is_recorded_with_module_and_source_line() -> None:
    book = missed("blocks.0.attn", {})
    (miss,) = book.misses
    assert (miss.reason, miss.module) == ("it is wrong", "blocks.0.attn")
    assert "model.py:7" in miss.where and book.balanced


def test_a_miss_elsewhere_says_where() -> None:
    node, source = site()
    book = Book("rule", sites=1)
    account_miss(book, node, Miss("it is wrong", source), {})
    assert book.misses[0].reason == "it is wrong, at x"


def test_the_first_glob_that_fits_tolerates() -> None:
    book = missed("blocks.0.attn", {"head.*": "a", "blocks.*": "b", "*": "c"})
    assert book.tolerated == {"blocks.*": 1} and not book.misses and book.balanced


def test_globs_are_about_the_whole_path() -> None:
    assert missed("blocks.0.attn", {"blocks": "a", "ATTN": "b"}).misses


def test_the_error_has_four_lines_and_says_what_to_type() -> None:
    book = missed("blocks.0.attn", {})
    with pytest.raises(MissError) as caught:
        refuse_misses("raise-x", [Book("fine"), book], tolerable=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == "error[miss]: raise-x: rule rule left 1 of 1 sites"
    assert [line.split()[0] for line in lines[1:]] == ["at", "because", "fix"]
    assert "blocks.0.attn" in lines[1] and "model.py:7" in lines[1]
    assert '[allow_miss."raise-x"] "blocks.0.attn" = "why"' in lines[3]


def test_a_book_that_does_not_balance_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="does not balance"):
        refuse_misses("raise-x", [Book("rule", sites=2, hits=1)], tolerable=True)


def test_every_account_counts_towards_the_balance() -> None:
    miss = MissRecord("r", "n", "m", "w")
    book = Book("rule", 10, 4, Counter(a=2), [miss], Counter(b=2), stopped=1)
    assert book.balanced
    assert book.to_dict() == {
        "rule": "rule",
        "sites": 10,
        "hits": 4,
        "excluded": {"a": 2},
        "tolerated": {"b": 2},
        "misses": [{"reason": "r", "node": "n", "module": "m", "where": "w"}],
        "stopped": 1,
    }
