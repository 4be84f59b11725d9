"""Two graphs beside each other: what each call of a block became.

Calls are paired by operator, value and module, in order. What stands alone on one side was
rewritten, and the rule that made its successor is named. A video model repeats its blocks, so one
is shown for all that were rewritten alike, and the others by number: a pattern that matched in half
of the blocks is seen here at once.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from torch.fx import GraphModule, Node

from llvq.graphs.ops import op_name
from llvq.graphs.text import spec_text
from llvq.graphs.write import module_path
from llvq.program import provenance

BLOCK = re.compile(r"^(?P<stem>.*?\bblocks)\.(?P<index>\d+)\b")


@dataclass(frozen=True)
class Call:
    """One call: `aten.linear`, `bf16[1,32,256]`, the module inside its block, and its rule."""

    op: str
    spec: str
    module: str
    rule: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.op, self.spec, self.module


@dataclass(frozen=True)
class Row:
    """The same call on both sides; or, if `changed`, one that went beside one that came.

    Changed calls stand beside each other in order only: three may have become one.
    """

    before: Call | None
    after: Call | None
    changed: bool = False


@dataclass(frozen=True)
class Likeness:
    """`blocks` (their numbers) that became `rows`, all of them alike."""

    blocks: tuple[int, ...]
    rows: tuple[Row, ...]


def side_by_side(before: GraphModule, after: GraphModule) -> list[Likeness]:
    """The blocks of two versions of one stage, grouped by what became of them."""
    old, new = _blocks(before), _blocks(after)
    groups: dict[tuple[Row, ...], list[int]] = {}
    for index in sorted(old.keys() | new.keys()):
        rows = tuple(_rows(old.get(index, []), new.get(index, [])))
        groups.setdefault(rows, []).append(index)
    return [Likeness(tuple(blocks), rows) for rows, blocks in groups.items()]


def _blocks(gm: GraphModule) -> dict[int, list[Call]]:
    found: dict[int, list[Call]] = {}
    for node in gm.graph.nodes:
        block = BLOCK.match(module_path(node)) if node.op == "call_function" else None
        if block and node.target is not operator.getitem:  # a part of the call before it
            found.setdefault(int(block["index"]), []).append(_call(node, block.end()))
    return found


def _call(node: Node, prefix: int) -> Call:
    return Call(
        op=op_name(node.target).removesuffix(".default"),
        spec=spec_text(node.meta.get("val")),
        module=module_path(node)[prefix:].removeprefix("."),
        rule=str(provenance(node).get("rule", "")),
    )


def _rows(old: Sequence[Call], new: Sequence[Call]) -> Iterator[Row]:
    matcher = SequenceMatcher(None, [c.key for c in old], [c.key for c in new], autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            yield from (Row(a, b) for a, b in zip(old[i:i_end], new[j:j_end], strict=True))
        else:
            beside = zip_longest(old[i:i_end], new[j:j_end])
            yield from (Row(a, b, changed=True) for a, b in beside)
