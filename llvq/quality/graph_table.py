"""The block of a stage before and after, as an HTML table: what went is red, what came is green."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from llvq.quality.side_by_side import Call, Likeness

STYLE = """
table.graph { font: 12px/1.35 ui-monospace, monospace; width: 100%; }
table.graph td { text-align: left; white-space: normal; border: 0; padding: 0 .6em;
                 width: 50%; vertical-align: top; }
table.graph .same { color: #888; } table.graph .gone { background: #fbe9e4; }
table.graph .come { background: #e7f3e2; } table.graph .rule { color: #5b8c3e; float: right; }
table.graph .module { color: #7a5aa6; }
"""


def graph_table(stage: str, groups: Sequence[Likeness], block_count: int) -> str:
    """One table for each way in which blocks were rewritten."""
    return "".join(_group(stage, group, block_count) for group in groups)


def _group(stage: str, group: Likeness, block_count: int) -> str:
    rows = "".join(
        f"<tr>{_cell(row.before, 'gone' if row.changed else 'same')}"
        f"{_cell(row.after, 'come' if row.changed else 'same')}</tr>"
        for row in group.rows
    )
    title = f"Stage {stage}, {numbers(group.blocks)} of {block_count}: BF16 and NVFP4"
    return f'<h2>{title}</h2><table class="graph">{rows}</table>'


def _cell(call: Call | None, kind: str) -> str:
    if call is None:
        return "<td></td>"
    rule = f'<span class="rule">{escape(call.rule)}</span>' if kind == "come" else ""
    module = f' <span class="module">{escape(call.module)}</span>' if call.module else ""
    return f'<td class="{kind}">{rule}{escape(call.op)} : {escape(call.spec)}{module}</td>'


def numbers(blocks: Sequence[int]) -> str:
    """`block 3`, `blocks 0-29`, `blocks 0-2 5`."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    spans = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"block{'s' if len(blocks) > 1 else ''} {' '.join(spans)}"
