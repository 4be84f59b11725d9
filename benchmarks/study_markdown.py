"""A study's JSON as a table in Markdown, of whole videos or of their first seconds.

    python -m benchmarks.study_markdown benchmarks/results/kv_study_h200.json
    python -m benchmarks.study_markdown benchmarks/results/kv_study_h200.json --chunks 10

*Close* is how many judged chunks come before one that is less than 10 dB from bf16's: median over
videos, and range. The last column is the difference to the identity of bf16's video of the same
noise: mean, and standard error. All else is mean and sample standard deviation over videos.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks.studies import KV, WEIGHTS
from benchmarks.study_rows import Row, Sample, cell, over_seeds, summarize

FIRST = {study.title: study.first for study in (KV, WEIGHTS)}
# Column -> its heading and digits.
SPREAD = {
    "sqnr_median": ("SQNR, median chunk, dB", 1),
    "psnr_median": ("PSNR, dB", 1),
    "ssim_median": ("SSIM", 3),
    "identity": ("identity", 3),
}


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """What `as_json` has written."""
    return [
        Row(row["variant"], row["bytes"], [Sample.read(sample) for sample in row["samples"]])
        for row in document["rows"]
    ]


def beginning(row: Row, chunks: int, first: int) -> Row:
    """Of all videos the first `chunks` alone, those before `first` not judged. Numbers that need
    more than chunks, such as drift of identity, are left out."""
    short = [sample.chunks[:chunks] for sample in row.samples]
    pairs = zip(row.samples, short, strict=True)
    return replace(
        row, samples=[replace(s, chunks=c, numbers=summarize(c, first)) for s, c in pairs]
    )


def table(rows: Sequence[Row]) -> str:
    """All rows; the first is bf16 itself."""
    told = [column for column in SPREAD if column in rows[0].samples[0].numbers]
    heads = ["", "smaller", "close, chunks", *(SPREAD[column][0] for column in told)]
    lines = [heads + ["minus bf16's"] * ("identity" in told)]
    for row in rows:
        line = [row.name, f"{rows[0].nbytes / row.nbytes:.2f}x", _close(row)]
        line += [cell(*over_seeds(row, column), SPREAD[column][1]) for column in told]
        lines.append(line + [_difference(row, rows[0])] * ("identity" in told))
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _close(row: Row) -> str:
    counts = sorted(int(sample.numbers["close"]) for sample in row.samples)
    return f"{median(counts):g} ({counts[0]} to {counts[-1]})"


def _difference(row: Row, plain: Row) -> str:
    pairs = zip(row.samples, plain.samples, strict=True)
    found = [made.numbers["identity"] - plain.numbers["identity"] for made, plain in pairs]
    if not any(found):
        return "0"
    error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return "+" * (mean(found) >= 0) + cell(mean(found), error, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="NAME.json of benchmarks.kv_study")
    parser.add_argument("--chunks", type=int, help="of a video, from its beginning (default: all)")
    args = parser.parse_args()
    document = json.loads(args.study.read_text(encoding="utf-8"))
    rows = rows_of(document)
    if args.chunks is not None:
        first = FIRST[document["study"]]
        if args.chunks <= first:
            parser.error(f"--chunks {args.chunks}: nothing is judged before chunk {first}")
        rows = [beginning(row, args.chunks, first) for row in rows]
    print(table(rows))


if __name__ == "__main__":
    main()
