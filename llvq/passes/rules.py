"""Rules: a rewriting pass is a tuple of them, and a rule is data.

An anchor says which nodes are sites, a pattern what a site must look like, a check what else must
hold, a builder what takes its place. All are module-level functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, GraphModule, Node

from llvq.calibration import Calibration
from llvq.matcher import match
from llvq.passes.books import Book, account_miss
from llvq.passes.builder import Builder, finish
from llvq.pattern import Match, Miss, root_targets
from llvq.program import Program, module_path, source_line
from llvq.recipe import Recipe


@dataclass(frozen=True)
class Rewrite:
    """One rewrite that was made: by which rule of which pass, and at which node."""

    pass_name: str
    rule: str
    node: str
    module: str
    source: str


@dataclass
class Context:
    """What a pass may read beside the program, and the log of rewrites, which `limit` cuts."""

    recipe: Recipe
    limit: int | None = None
    pass_name: str = ""
    log: list[Rewrite] = field(default_factory=list)
    calibration: Calibration = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached, and sites may be left as they were."""
        return self.limit is not None and len(self.log) >= self.limit

    def take(self, rule: str, node: Node) -> bool:
        """Log one rewrite at `node`; False when the limit is reached and it must not happen."""
        if self.exhausted:
            return False
        place = (node.name, module_path(node), source_line(node))
        self.log.append(Rewrite(self.pass_name, rule, *place))
        return True


Check = Callable[[Match], str | None]
Build = Callable[[Match, Builder], Node]


def always(_: Match) -> None:
    return None


def never(_: Node, __: Recipe) -> None:
    return None


@dataclass(frozen=True)
class Rule:
    """`anchor` says which nodes are sites; `check` gives a reason not to, or None.

    `excluded` gives the glob of the recipe that keeps a site as it is, or None.
    """

    name: str
    anchor: Callable[[Node], bool]
    pattern: Any
    build: Build
    check: Check = always
    excluded: Callable[[Node, Recipe], str | None] = never


def apply_rules(program: Program, ctx: Context, name: str, rules: tuple[Rule, ...]) -> list[Book]:
    """Apply the rules one after the other; raise MissError for what no tolerance covers."""
    return [apply_rule(program, ctx, name, rule) for rule in rules]


def apply_rule(program: Program, ctx: Context, pass_name: str, rule: Rule) -> Book:
    """Rewrite every site of one rule in every graph, and account for every site."""
    book = Book(rule.name)
    for gm in program.graphs.values():
        _apply(program, gm, ctx, pass_name, rule, book)
    return book


def _apply(
    program: Program, gm: GraphModule, ctx: Context, pass_name: str, rule: Rule, book: Book
) -> None:
    """Rewrite the sites of one graph, outermost roots first."""
    sites = [node for node in gm.graph.nodes if rule.anchor(node)]
    book.sites += len(sites)
    left = dict.fromkeys(_not_excluded(rule, sites, book, ctx.recipe))
    deepest: dict[Node, Miss] = {}
    for root in reversed(_roots(gm.graph, rule)):
        found = _try(rule, root)
        if isinstance(found, Miss):
            _keep_deepest(deepest, found)
            continue
        covered = [node for node in dict.fromkeys(found.nodes) if node in left]
        if covered:
            _rewrite(program, ctx, rule, found, book, len(covered))
            left = {node: None for node in left if node not in covered}
    _account_misses(book, list(left), deepest, ctx, pass_name)
    finish(gm)


def _not_excluded(rule: Rule, sites: list[Node], book: Book, recipe: Recipe) -> list[Node]:
    """The sites that no glob keeps; the others go into the book under theirs."""
    globs = {node: rule.excluded(node, recipe) for node in sites}
    book.excluded.update(glob for glob in globs.values() if glob is not None)
    return [node for node in sites if globs[node] is None]


def _rewrite(
    program: Program, ctx: Context, rule: Rule, found: Match, book: Book, sites: int
) -> None:
    if not ctx.take(rule.name, found.root):
        book.stopped += sites
        return
    book.hits += sites
    builder = Builder(program, rule.name, found.root, found.nodes)
    found.root.replace_all_uses_with(rule.build(found, builder))
    found.root.graph.erase_node(found.root)  # FX keeps dead ops that it takes for random.


def _keep_deepest(deepest: dict[Node, Miss], miss: Miss) -> None:
    """The attempt that matched most of a site explains best why the rest did not."""
    for node in miss.covered:
        if node not in deepest or len(deepest[node].covered) <= len(miss.covered):
            deepest[node] = miss


def _roots(graph: Graph, rule: Rule) -> list[Node]:
    targets = root_targets(rule.pattern)
    return [node for node in graph.nodes if node.op == "call_function" and node.target in targets]


def _try(rule: Rule, root: Node) -> Match | Miss:
    if not root.users:  # Already replaced; dead until the end of the rule.
        return Miss("it is dead", root)
    found = match(rule.pattern, root)
    if isinstance(found, Match):
        reason = rule.check(found)
        if reason is not None:
            return Miss(reason, root, found.nodes)
    return found


def _account_misses(
    book: Book, sites: list[Node], reasons: dict[Node, Miss], ctx: Context, pass_name: str
) -> None:
    allowed = ctx.recipe.allow_miss.get(pass_name, {})
    for site in sites:
        miss = reasons.get(site, Miss("no node that could end the pattern uses it", site))
        account_miss(book, site, miss, allowed)
