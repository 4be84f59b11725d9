"""Applying a rule: what is rewritten, what is left with which reason, and how the books add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from llvq.capture import capture
from llvq.errors import MissError
from llvq.passes.books import Book, refuse_misses
from llvq.passes.builder import Builder, is_call
from llvq.passes.rules import Context, Rule, apply_rule, apply_rules
from llvq.pattern import Match, Var, call, maybe
from llvq.program import Program, provenance
from llvq.recipe import BF16

aten = torch.ops.aten
EXP, NEG, TANH = aten.exp.default, aten.neg.default, aten.tanh.default


class Chain(nn.Module):
    """Three sites exp(-x): one plain, one whose inside is used twice, one below a tanh."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        inner = -(x + 2)
        return {"a": torch.exp(-x), "b": torch.exp(inner), "c": inner, "d": (-(x + 3)).exp().tanh()}


def is_exp(node: Node) -> bool:
    return is_call(node, EXP)


def build_reciprocal(found: Match, b: Builder) -> Node:
    return b.call(aten.reciprocal.default, b.call(EXP, found["x"]))


def not_after_three(found: Match) -> str | None:
    return "it adds three" if found["x"].args[1:] == (3,) else None


PLAIN = Rule("exp-neg", is_exp, call(EXP, call(NEG, Var("x"))), build_reciprocal)
THROUGH_TANH = replace(PLAIN, pattern=maybe(TANH, call(EXP, call(NEG, Var("x")))))
CHECKED = replace(PLAIN, check=not_after_three)


@pytest.fixture
def chain() -> Program:
    return capture(Chain(), {"x": torch.ones(4)}, rates={"x": "call"})


def test_hits_are_rewritten_and_misses_are_explained(chain: Program) -> None:
    book = apply_rule(chain, Context(BF16), "test", PLAIN)
    assert (book.sites, book.hits, len(book.misses)) == (3, 2, 1)
    (miss,) = book.misses
    assert "neg has 2 users" in miss.reason or "neg_1 has 2 users" in miss.reason
    assert "test_rules.py" in miss.where and miss.node.startswith("exp")
    assert chain.op_counts()["aten.reciprocal.default"] == 2 and book.balanced


def test_the_rewritten_graph_computes_the_same(chain: Program) -> None:
    x = torch.linspace(-1, 1, 4)
    before = chain.graph(x)
    apply_rule(chain, Context(BF16), "test", PLAIN)
    for old, new in zip(before, chain.graph(x), strict=True):
        torch.testing.assert_close(old, new)


def test_new_nodes_say_where_they_come_from(chain: Program) -> None:
    apply_rule(chain, Context(BF16), "test", PLAIN)
    made = next(n for n in chain.graph.graph.nodes if is_call(n, aten.reciprocal.default))
    assert provenance(made)["rule"] == "exp-neg"
    assert [name.split("_")[0] for name in provenance(made)["from"]] == ["neg", "exp"]
    assert "test_rules.py" in made.meta["stack_trace"]


def test_the_longest_match_wins(chain: Program) -> None:
    apply_rule(chain, Context(BF16), "test", THROUGH_TANH)
    assert chain.op_counts()["aten.tanh.default"] == 0


def test_a_check_turns_a_match_into_a_miss(chain: Program) -> None:
    book = apply_rule(chain, Context(BF16), "test", CHECKED)
    assert (book.sites, book.hits, len(book.misses)) == (3, 1, 2)
    assert "it adds three" in {miss.reason for miss in book.misses}


def test_a_site_that_no_root_reaches_is_a_miss(chain: Program) -> None:
    rule = replace(PLAIN, pattern=call(aten.relu.default, call(EXP, Var("x"))))
    book = apply_rule(chain, Context(BF16), "test", rule)
    assert {miss.reason for miss in book.misses} == {"no node that could end the pattern uses it"}
    assert len(book.misses) == book.sites == 3


def test_a_second_run_finds_nothing(chain: Program) -> None:
    reciprocal = replace(PLAIN, pattern=call(EXP, call(NEG, Var("x"))))
    apply_rule(chain, Context(BF16), "test", reciprocal)
    before = chain.text()
    book = apply_rule(chain, Context(BF16), "test", reciprocal)
    assert book.hits == 0 and chain.text() == before


def test_tolerated_misses_are_counted_by_glob(chain: Program) -> None:
    recipe = replace(BF16, allow_miss={"test": {"*": "not ours"}})
    (book,) = apply_rules(chain, Context(recipe), "test", (PLAIN,))
    assert book.tolerated == {"*": 1} and not book.misses and book.balanced
    refuse_misses("test", [book], tolerable=True)


def test_a_tolerance_for_another_pass_does_not_count(chain: Program) -> None:
    recipe = replace(BF16, allow_miss={"other": {"*": "not ours"}})
    books = apply_rules(chain, Context(recipe), "test", (PLAIN,))
    with pytest.raises(MissError, match="rule exp-neg left 1 of 3 sites"):
        refuse_misses("test", books, tolerable=True)


@pytest.mark.parametrize(("limit", "hits"), [(0, 0), (1, 1), (2, 2), (9, 2)])
def test_a_limit_stops_rewriting(chain: Program, limit: int, hits: int) -> None:
    ctx = Context(BF16, limit)
    book = apply_rule(chain, ctx, "test", PLAIN)
    assert (book.hits, book.stopped, len(ctx.log)) == (hits, 2 - hits, hits)
    assert book.balanced and ctx.exhausted == (limit <= 2)


def test_a_book_starts_balanced() -> None:
    assert Book("rule").balanced and not Book("rule", sites=1).balanced
