"""The report folder: report.json, and report.html that needs no other file and no network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from llvq.errors import OutputError
from llvq.quality import graph_table
from llvq.quality.calls import median_by_moment
from llvq.quality.charts import bars, curves
from llvq.quality.comparison import Comparison, worst_first
from llvq.quality.tables import RUN_NAMES, Table, all_tables, flat

DIFFERENCE_GAIN = 4
MAX_FRAME_WIDTH = 480
HEALTH_CURVES = {
    "luma": "grey levels",
    "contrast": "grey levels",
    "saturation": "grey levels",
    "sharpness": "grey levels squared",
    "motion": "grey levels per frame",
}
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin: 2em 0 .4em; }
table { border-collapse: collapse; font-size: 12.5px; }
th, td { padding: .15em .7em; text-align: right; border-bottom: 1px solid #e4e4e4;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th { border-bottom: 1.5px solid #999; } th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } .left td, .left th { text-align: left; }
.left td + td { white-space: normal; overflow-wrap: anywhere; }
p.caption { color: #555; margin: .3em 0 .6em; } p.note { margin: .2em 0; }
svg text { font: 11px system-ui, sans-serif; fill: #333; }
img { display: block; width: 100%; }
figure { margin: 0; } .strip { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
figcaption { color: #555; font-size: 12px; }
"""


def write_report(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write both files, making the folder; gives their paths. Raises OutputError."""
    page, data = folder / "report.html", folder / "report.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(comparison.to_dict(), indent=1) + "\n", encoding="utf-8")
        page.write_text(html(comparison), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            "cannot write the report",
            where=str(folder),
            because=error.strerror or str(error),
            fix="free some space, or name another folder with -o",
        ) from error
    return page, data


def html(comparison: Comparison) -> str:
    """The page as one string."""
    body = [
        "<h1>BF16 against NVFP4</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in comparison.notes),
        _table(Table("What was measured", ("", ""), flat(comparison.measured)), kind="left"),
        *_frames(comparison),
        *_curves(comparison),
        *map(_table, all_tables(comparison)),
        *_layer_bars(comparison),
        *_graphs(comparison),
    ]
    style = f"<style>{STYLE}{graph_table.STYLE}</style>"
    head = f'<meta charset="utf-8"><title>llvq compare</title>{style}'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>'


def _table(table: Table, kind: str = "") -> str:
    kind = "left" if table.columns[0] == "what" else kind
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    head = f"<tr>{head}</tr>" if any(table.columns) else ""
    body = f'<div class="wide"><table class="{kind}">{head}{rows}</table></div>'
    return f"<h2>{escape(table.title)}</h2>{caption}{body}"


def _curves(comparison: Comparison) -> Iterator[str]:
    video = comparison.video
    runs = {RUN_NAMES[name]: errors for name, errors in video.runs.items()}
    latents = {name: [e.latents.sqnr_db for e in run] for name, run in runs.items()}
    yield f"<h2>SQNR of latents per chunk</h2>{curves(latents, unit='dB')}"
    by_step = median_by_moment(comparison.ops, video.steps)
    yield f"<h2>Median SQNR of outputs per chunk, BF16 inputs</h2>{curves(by_step, unit='dB')}"
    frames = {name: [e.frames for e in run if e.frames] for name, run in runs.items()}
    if any(frames.values()):
        psnr = {name: [found.psnr_db for found in run] for name, run in frames.items()}
        yield f"<h2>PSNR of frames per chunk</h2>{curves(psnr, unit='dB')}"
        yield from _judged_curves(comparison)
        yield from _health_curves(comparison)


def _judged_curves(comparison: Comparison) -> Iterator[str]:
    for name, sides in comparison.video.judged.items():
        lines = {side.upper(): line for side, line in sides.items()}
        yield f"<h2>{escape(name)}</h2>{curves(lines, unit='value of the chunk')}"


def _health_curves(comparison: Comparison) -> Iterator[str]:
    """One chart per measure, both sides: without a reference, drift is what parts them."""
    sides = comparison.video.health.items()
    for name, unit in HEALTH_CURVES.items():
        lines = {side.upper(): [float(getattr(h, name)) for h in run] for side, run in sides}
        yield f"<h2>{name.capitalize()} per chunk</h2>{curves(lines, unit=unit)}"


def _layer_bars(comparison: Comparison) -> Iterator[str]:
    ran = [error for error in worst_first(comparison.layers) if error.output.calls]
    values = [(error.layer.name, error.output.total.sqnr_db) for error in ran]
    yield f"<h2>SQNR of outputs by layer, worst first</h2>{bars(values, unit='dB')}"


def _graphs(comparison: Comparison) -> Iterator[str]:
    """The blocks of every stage that was rewritten, BF16 and NVFP4 beside each other."""
    for stage, groups in comparison.structure.blocks.items():
        yield graph_table.graph_table(stage, groups, sum(len(group.blocks) for group in groups))


def _frames(comparison: Comparison) -> Iterator[str]:
    """The middle frame of each chunk: BF16, NVFP4, and their difference."""
    video = comparison.video
    pairs = [(a, b) for a, b in zip(video.baseline, video.quantized, strict=True)]
    if any(a.frames is None or b.frames is None for a, b in pairs):
        return
    yield "<h2>Middle frame of each chunk</h2>"
    for a, b in pairs:
        assert a.frames is not None and b.frames is not None
        middle = a.frames.shape[0] // 2
        ours, theirs = a.frames[middle], b.frames[middle]
        difference = difference_image(ours, theirs)
        named = (("BF16", ours), ("NVFP4", theirs), (f"{DIFFERENCE_GAIN} x difference", difference))
        figures = "".join(
            f'<figure><img src="{png_uri(frame)}" alt="{name}">'
            f"<figcaption>chunk {a.index}: {name}</figcaption></figure>"
            for name, frame in named
        )
        yield f'<div class="strip">{figures}</div>'


def difference_image(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| of uint8 frames, amplified by DIFFERENCE_GAIN; black where they agree."""
    distance = (a.to(torch.int16) - b.to(torch.int16)).abs()
    return (distance * DIFFERENCE_GAIN).clamp(max=255).to(torch.uint8)


def png_uri(frame: Tensor) -> str:
    """A uint8 frame [H, W, 3] as a data URI, at most MAX_FRAME_WIDTH wide."""
    image = Image.fromarray(frame.numpy())
    image.thumbnail((MAX_FRAME_WIDTH, MAX_FRAME_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
