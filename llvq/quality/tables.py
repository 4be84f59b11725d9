"""The tables of a comparison, as text cells: one source for the terminal and for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from llvq.quality.calls import kinds_by_moment, median_by_moment
from llvq.quality.comparison import Comparison, by_kind, summary, worst_first
from llvq.quality.frames import FrameError
from llvq.quality.health import Health
from llvq.quality.metrics import NOTHING, Energies, slope

WORST = 10
RUN_NAMES = {
    "free_running": "free-running",
    "teacher_forced": "teacher-forced",
    "noise_floor": "noise floor",
    "other_seed": "other seed",
}


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of text, and a sentence on how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""


def all_tables(comparison: Comparison) -> list[Table]:
    """Every table that has a row, in reading order."""
    tables = [
        _passes(comparison),
        _levels(comparison),
        _ops(comparison),
        _layers_touched(comparison),
        _weights(comparison),
        _kv(comparison),
        _kinds(comparison),
        _worst(comparison),
        _kinds_by_step(comparison),
        _chunks_by_step(comparison),
        _chunks(comparison),
        _frames(comparison),
        _judged(comparison),
        _health(comparison),
        _summary(comparison),
    ]
    return [table for table in tables if table.rows]


def _passes(comparison: Comparison) -> Table:
    rows = [
        (
            row.name,
            row.level,
            row.numerics,
            _change(row.nodes),
            *map(str, (row.sites, row.hits, row.excluded, row.misses)),
        )
        for row in comparison.structure.passes
    ]
    columns = ("pass", "level", "numerics", "nodes", "sites", "hits", "excluded", "misses")
    return Table("Passes of the quantized compile", columns, rows)


def _levels(comparison: Comparison) -> Table:
    levels = {level: ops for level, ops in comparison.structure.levels.items() if ops}
    changed = sorted({op for ops in levels.values() for op in ops})
    rows = [(op, *(_change(ops.get(op)) for ops in levels.values())) for op in changed]
    caption = "Calls before -> after. At staged, stages repeat what they share."
    return Table("Ops by level of the quantized compile", ("op", *levels), rows, caption)


def _ops(comparison: Comparison) -> Table:
    found = comparison.structure
    stages = [stage for stage, ops in found.ops.items() if ops]
    rows: list[tuple[str, ...]] = []
    rows.append(("all nodes", *(_change(found.nodes[stage]) for stage in stages)))
    for op in sorted(found.changed):
        rows.append((op, *(_change(found.ops[stage].get(op)) for stage in stages)))
    same = [stage for stage in found.ops if stage not in stages]
    caption = f"Ops BF16 -> quantized by stage. Unchanged: {', '.join(same)}." if same else ""
    return Table("Graphs", ("op", *stages), rows, caption)


def _layers_touched(comparison: Comparison) -> Table:
    found = comparison.structure
    rows = [("one GEMM", kind, f"{count} x") for kind, count in found.fused.items()]
    for layer, glob in found.excluded.items():
        rows.append(("kept", layer, glob or "a miss that the recipe tolerates"))
    return Table("Fused and excluded layers", ("what", "layer", "how many, or by which glob"), rows)


def _weights(comparison: Comparison) -> Table:
    parts = [*comparison.sizes.parts, comparison.sizes.total]
    rows = [
        (
            part.part,
            *map(bytes_text, (part.baseline, part.codes, part.scales, part.global_scales)),
            *map(bytes_text, (part.kept, part.quantized)),
            f"{part.ratio:.2f}x",
        )
        for part in parts
    ]
    unused = comparison.sizes.unused
    caption = f"The files hold {bytes_text(unused)} more that no graph reads." if unused else ""
    columns = ("part", "BF16", "codes", "scales", "global", "kept", "quantized", "smaller")
    return Table("Bytes of the weights", columns, rows, caption)


def _kv(comparison: Comparison) -> Table:
    found = comparison.sizes
    before, after = found.kv
    ratio = f"{before / after:.2f}x" if after else "-"
    row = (str(found.kv_chunks), bytes_text(before), bytes_text(after), found.kv_format, ratio)
    columns = ("chunks", "BF16", "quantized", "format", "smaller")
    return Table("Bytes of the KV cache, the full window", columns, [row])


def _kinds(comparison: Comparison) -> Table:
    rows = [
        (kind.name, str(kind.layers), *_cells(kind.weight), *_cells(kind.output))
        for kind in by_kind(comparison.ops)
    ]
    return Table(
        "Layers by kind", ("kind", "layers", *_error_columns()), rows,
        "Weight against the checkpoint's; output on the same input, that of the BF16 run. Pages: "
        "attention over packed keys and values.",
    )  # fmt: skip


def _worst(comparison: Comparison) -> Table:
    rows = [
        (
            error.layer.name,
            str(error.output.calls),
            *_cells(error.weight),
            *_cells(error.output.total),
        )
        for error in worst_first(comparison.layers)[:WORST]
    ]
    columns = ("layer", "calls", *_error_columns())
    return Table(f"The worst {len(rows)} of {len(comparison.layers)} layers", columns, rows)


def _kinds_by_step(comparison: Comparison) -> Table:
    found = kinds_by_moment(comparison.ops, comparison.video.steps)
    moments = list(dict.fromkeys(name for sums in found.values() for name in sums))
    rows = [
        (kind, *(_cells(sums.get(name, NOTHING))[0] for name in moments))
        for kind, sums in found.items()
        if sums
    ]
    caption = "SQNR of outputs in dB, on the inputs of the BF16 run. Refresh: of the clean chunk."
    return Table("Outputs by kind and step", ("kind", *moments), rows, caption)


def _chunks_by_step(comparison: Comparison) -> Table:
    found = median_by_moment(comparison.ops, comparison.video.steps)
    lines = zip(*found.values(), strict=True)
    rows = [
        (str(index), *("-" if math.isnan(db) else decibel(db) for db in line))
        for index, line in enumerate(lines)
    ]
    return Table("Outputs by chunk and step", ("chunk", *found), rows, "The median over all ops.")


def _chunks(comparison: Comparison) -> Table:
    video = comparison.video
    columns = ("chunk", "free dB", "cosine", "rel. L2", "forced dB", "cosine", "rel. L2")
    caption = (
        "Latents of every chunk against the BF16 run. free: from its own history; forced: from the "
        "BF16 history."
    )
    rows = [
        (str(free.index), *_cells(free.latents), *_cells(forced.latents))
        for free, forced in zip(video.free, video.forced, strict=True)
    ]
    return Table("Chunks", columns, rows, caption)


def _frames(comparison: Comparison) -> Table:
    video = comparison.video
    rows = [
        (RUN_NAMES[name], str(error.index), *_frame_cells(error.frames))
        for name, run in video.runs.items()
        for error in run
        if error.frames is not None
    ]
    columns = ("run", "chunk", "PSNR dB", "SSIM", "MS-SSIM", "VMAF")
    return Table("Frames against the BF16 run", columns, rows)


def _frame_cells(found: FrameError) -> tuple[str, str, str, str]:
    multi = "-" if found.ms_ssim is None else f"{found.ms_ssim:.4f}"
    vmaf = "-" if found.vmaf is None else f"{found.vmaf:.2f}"
    return (decibel(found.psnr_db), f"{found.ssim:.4f}", multi, vmaf)


def _judged(comparison: Comparison) -> Table:
    rows = [
        (name, side.upper(), *(f"{value:.3f}" for value in _over_chunks(line)))
        for name, sides in comparison.video.judged.items()
        for side, line in sides.items()
    ]
    columns = ("curve", "side", "mean", "last known", "drift per chunk")
    return Table("Judged", columns, rows, "By the judge of the request; over what it could tell.")


def _over_chunks(line: Sequence[float]) -> tuple[float, float, float]:
    known = [value for value in line if math.isfinite(value)]
    if not known:
        return (math.nan, math.nan, math.nan)
    drift = slope(line) if len(known) == len(line) else math.nan
    return (sum(known) / len(known), known[-1], drift)


def _health(comparison: Comparison) -> Table:
    rows = [
        (side.upper(), str(index), *(f"{value:.4g}" for value in found.to_dict().values()))
        for side, run in comparison.video.health.items()
        for index, found in enumerate(run)
    ]
    columns = ("side", "chunk", *(field.name for field in fields(Health)))
    caption = "No reference: luma, contrast, saturation and motion in grey levels; frames counted."
    return Table("Health of the frames", columns, rows, caption)


def _summary(comparison: Comparison) -> Table:
    runs = comparison.video.runs
    rows = [(RUN_NAMES[name], *map(decibel, summary(run).values())) for name, run in runs.items()]
    columns = ("run", "worst chunk dB", "median dB", "last chunk dB", "drift dB per chunk")
    caption = (
        "Noise floor: BF16 with another attention implementation; no recipe can be above it. Other "
        "seed: another video of the same prompt; an error that large is another video."
    )
    return Table("SQNR of latents over the video", columns, rows, caption if len(runs) > 2 else "")


def _error_columns() -> tuple[str, ...]:
    names = ("dB", "cosine", "rel. L2")
    return tuple(f"{side} {name}" for side in ("weight", "output") for name in names)


def _cells(found: Energies) -> tuple[str, str, str]:
    if found == NOTHING:
        return ("-", "-", "-")
    return (decibel(found.sqnr_db), f"{found.cosine:.5f}", f"{found.relative_l2:.4f}")


def _change(counts: tuple[int, int] | None) -> str:
    if counts is None:
        return ""
    before, after = counts
    return str(before) if before == after else f"{before} -> {after}"


def decibel(value: float) -> str:
    """`23.96`; `inf` where nothing differs."""
    return f"{value:.2f}" if math.isfinite(value) else str(value)


def bytes_text(count: int) -> str:
    """`5.11 GB`, in powers of 1000; `-` for nothing."""
    if not count:
        return "-"
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while abs(value) >= 999.5 and len(units) > 1:  # what .3g would round up to 1e+03
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def flat(document: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested data as (name, text) rows: `versions torch`, `2.13.0`."""
    rows: list[tuple[str, str]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key} ")
        else:
            text = " / ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((prefix + key.replace("_", " "), "-" if value is None else text))
    return rows
