"""What a study of variants measures of each video, its mean and spread over seeds, and the table.

A row is a variant, a sample the video of one seed: measures by chunk, and numbers of the whole
video. Everything is plain data, so that it can be written as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median, stdev
from typing import Any

import torch

from llvq.quality.metrics import slope
from llvq.quality.rollout import chunk_errors
from llvq.runtime.session import Chunk

# Column -> its heading and digits, in the order of the table.
COLUMNS: Mapping[str, tuple[str, int]] = {
    "sqnr_worst": ("SQNR worst dB", 2),
    "sqnr_median": ("median dB", 2),
    "sqnr_last": ("last dB", 2),
    "close": ("chunks until <10", 1),
    "drift": ("drift dB/chunk", 3),
    "psnr_median": ("PSNR median dB", 2),
    "psnr_last": ("last dB", 2),
    "ssim_median": ("SSIM median", 4),
    "ssim_last": ("last", 4),
    "identity": ("identity", 3),
    "identity_drift": ("drift /min", 3),
}
CLOSE = 10.0  # dB: below it a video has gone its own way


@dataclass(frozen=True)
class Sample:
    """One video. `chunks` are measures of each chunk; `numbers` those of COLUMNS that there are."""

    seed: int
    prompts: tuple[str, ...]
    chunks: list[dict[str, float]]
    numbers: dict[str, float]

    @classmethod
    def read(cls, held: Mapping[str, Any]) -> Sample:
        """What JSON holds of one, as itself or by `as_json`."""
        chunks = [{name: float(value) for name, value in chunk.items()} for chunk in held["chunks"]]
        numbers = {name: float(value) for name, value in held["numbers"].items()}
        return cls(held["seed"], tuple(held["prompts"]), chunks, numbers)


@dataclass(frozen=True)
class Row:
    """One variant. `nbytes` is what it is about, the page pool or the weights."""

    name: str
    nbytes: int
    samples: list[Sample]


def joined(parts: Sequence[Sequence[Row]]) -> list[Row]:
    """One study of what were several of the same variants, each over seeds of its own."""
    rows = []
    for same in zip(*parts, strict=True):
        samples = sorted((s for row in same for s in row.samples), key=lambda one: one.seed)
        rows.append(replace(same[0], samples=samples))
    return rows


def measure(
    reference: Sequence[Chunk], chunks: Sequence[Chunk], device: torch.device
) -> list[dict[str, float]]:
    """Each chunk against the reference; frames where both have them, compared on `device`."""
    found = []
    for error in chunk_errors(_on(reference, device), _on(chunks, device)):
        values = {"sqnr_db": error.latents.sqnr_db}
        if error.frames is not None:
            values |= {"psnr_db": error.frames.psnr_db, "ssim": error.frames.ssim}
        found.append(values)
    return found


def _on(chunks: Sequence[Chunk], device: torch.device) -> list[Chunk]:
    return [
        chunk if chunk.frames is None else replace(chunk, frames=chunk.frames.to(device))
        for chunk in chunks
    ]


def summarize(chunks: Sequence[Mapping[str, float]], first: int) -> dict[str, float]:
    """The numbers of a video, over its chunks from `first` on. Drift is the slope of the SQNR;
    `close` counts the chunks before one is below CLOSE, all of them if none is.

    The identity of a chunk is NaN where no frame can tell.
    """
    judged = chunks[first:]
    sqnr = [chunk["sqnr_db"] for chunk in judged]
    numbers = {
        "sqnr_worst": min(sqnr),
        "sqnr_median": median(sqnr),
        "sqnr_last": sqnr[-1],
        "close": float(_leading(sqnr, CLOSE)),
        "drift": slope(sqnr),
    }
    for name in ("psnr", "ssim"):
        key = "psnr_db" if name == "psnr" else name
        if key in judged[0]:
            values = [chunk[key] for chunk in judged]
            numbers |= {f"{name}_median": median(values), f"{name}_last": values[-1]}
    if "identity" in judged[0]:
        told = [chunk["identity"] for chunk in judged if not math.isnan(chunk["identity"])]
        numbers["identity"] = mean(told) if told else math.nan
    return numbers


def _leading(sqnr: Sequence[float], least: float) -> int:
    """How many come before the first that is smaller."""
    return next((i for i, value in enumerate(sqnr) if value < least), len(sqnr))


def over_seeds(row: Row, column: str) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; inf where nothing differs, NaN where unknown.

    The deviation of one seed is NaN.
    """
    values = [sample.numbers[column] for sample in row.samples]
    if not all(map(math.isfinite, values)):
        same = all(value == math.inf for value in values)
        return (math.inf if same else math.nan), math.nan
    return mean(values), stdev(values) if len(values) > 1 else math.nan


def table(rows: Sequence[Row], plain_bytes: int) -> str:
    """All rows as text; `plain_bytes` is what a row's bytes are compared with."""
    columns = [column for column in COLUMNS if column in rows[0].samples[0].numbers]
    lines = [["variant", "bytes", "smaller", *(COLUMNS[column][0] for column in columns)]]
    for row in rows:
        ratio = f"{plain_bytes / row.nbytes:.2f}x"
        cells = [cell(*over_seeds(row, column), COLUMNS[column][1]) for column in columns]
        lines.append([row.name, f"{row.nbytes}", ratio, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def cell(middle: float, spread: float, digits: int) -> str:
    """`equal` where nothing differs, `-` where nothing is known; no spread if there is none."""
    if math.isnan(middle):
        return "-"
    if math.isinf(middle):
        return "equal"
    return f"{middle:.{digits}f}" + ("" if math.isnan(spread) else f" +-{spread:.{digits}f}")


def as_json(rows: Sequence[Row], plain_bytes: int) -> list[dict[str, Any]]:
    """The same with every chunk, numbers to six digits. JSON has no infinity: what is not finite is
    its name."""
    return [
        {
            "variant": row.name,
            "bytes": row.nbytes,
            "smaller": plain_bytes / row.nbytes,
            "over_seeds": {
                column: _named(*over_seeds(row, column)) for column in row.samples[0].numbers
            },
            "samples": [
                {
                    "seed": sample.seed,
                    "prompts": list(sample.prompts),
                    "chunks": [{k: _plain(v) for k, v in c.items()} for c in sample.chunks],
                    "numbers": {k: _plain(v) for k, v in sample.numbers.items()},
                }
                for sample in row.samples
            ],
        }
        for row in rows
    ]


def _named(middle: float, spread: float) -> dict[str, float | str]:
    return {"mean": _plain(middle), "deviation": _plain(spread)}


def _plain(value: float) -> float | str:
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
