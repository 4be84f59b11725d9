"""A study's JSON as a table in Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from benchmarks.study_markdown import beginning, rows_of, table
from benchmarks.study_rows import Row, Sample, as_json, summarize

INF, NAN = math.inf, math.nan


def row(name: str, nbytes: int, *videos: list[tuple[float, float]]) -> Row:
    """Videos of (SQNR, identity) by chunk; the first chunk is not judged."""
    samples = []
    for seed, video in enumerate(videos):
        chunks = [{"sqnr_db": sqnr, "identity": told} for sqnr, told in video]
        samples.append(Sample(seed, ("a prompt",), chunks, summarize(chunks, 1)))
    return Row(name, nbytes, samples)


ROWS = [
    row("bf16", 400, [(INF, 1.0)] * 4, [(INF, 1.0), (INF, NAN), (INF, 1.0), (INF, 0.5)]),
    row("nvfp4", 100, [(INF, 1.0), (30.0, 1.0), (20.0, 0.8), (5.0, 0.6)],
        [(INF, 1.0), (9.0, NAN), (12.0, 1.0), (12.0, 0.5)]),
]  # fmt: skip


def read_back(rows: list[Row]) -> list[Row]:
    return rows_of(json.loads(json.dumps({"rows": as_json(rows, 400)})))


def test_what_was_written_is_read_back() -> None:
    # repr: NaN is not equal to itself.
    assert repr(read_back(ROWS)) == repr(ROWS)


def test_a_table_of_whole_videos() -> None:
    assert table(read_back(ROWS)) == (
        "|  | smaller | close, chunks | SQNR, median chunk, dB | identity | minus bf16's |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| bf16 | 1.00x | 3 (3 to 3) | equal | 0.875 +-0.177 | 0 |\n"
        "| nvfp4 | 4.00x | 1 (0 to 2) | 16.0 +-5.7 | 0.775 +-0.035 | -0.100 +-0.100 |"
    )


def test_one_video_has_no_spread() -> None:
    rows = [replace(row, samples=row.samples[:1]) for row in ROWS]
    assert table(rows).splitlines()[-1] == (
        "| nvfp4 | 4.00x | 2 (2 to 2) | 20.0 | 0.800 | -0.200 |"
    )


def test_a_table_of_how_they_begin() -> None:
    rows = [beginning(row, 3, 1) for row in ROWS]
    assert table(rows).splitlines()[-2:] == [
        "| bf16 | 1.00x | 2 (2 to 2) | equal | 1.000 +-0.000 | 0 |",
        "| nvfp4 | 4.00x | 1 (0 to 2) | 17.8 +-10.3 | 0.950 +-0.071 | -0.050 +-0.050 |",
    ]
