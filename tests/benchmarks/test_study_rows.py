"""Numbers of a study by hand: what is left out, what is equal, what spreads."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.study_rows import (
    Row,
    Sample,
    as_json,
    joined,
    measure,
    over_seeds,
    summarize,
    table,
)
from llvq.runtime.session import Chunk

CPU = torch.device("cpu")

CHUNKS = [
    {"sqnr_db": math.inf, "psnr_db": math.inf, "ssim": 1.0, "identity": 1.0},
    {"sqnr_db": 30.0, "psnr_db": 40.0, "ssim": 0.9, "identity": 0.5},
    {"sqnr_db": 20.0, "psnr_db": 35.0, "ssim": 0.8, "identity": 1.0},
    {"sqnr_db": 22.0, "psnr_db": 33.0, "ssim": 0.6, "identity": 0.0},
]


def row(name: str, *values: float) -> Row:
    samples = [Sample(seed, ("a",), CHUNKS, {"drift": v}) for seed, v in enumerate(values)]
    return Row(name, 50, samples)


def test_a_video_is_judged_from_its_first_history_on() -> None:
    assert summarize(CHUNKS, 1) == {
        "sqnr_worst": 20.0, "sqnr_median": 22.0, "sqnr_last": 22.0, "drift": -4.0,
        "close": 3.0,
        "psnr_median": 35.0, "psnr_last": 33.0, "ssim_median": 0.8, "ssim_last": 0.6,
        "identity": 0.5,
    }  # fmt: skip
    assert math.isnan(summarize(CHUNKS, 0)["drift"])


def test_chunks_that_cannot_tell_are_left_out_of_identity() -> None:
    hidden = [{**chunk, "identity": math.nan} for chunk in CHUNKS]
    assert summarize([*hidden[:3], CHUNKS[2]], 1)["identity"] == 1.0
    assert math.isnan(summarize(hidden, 1)["identity"])


def test_latents_alone_give_no_numbers_of_frames() -> None:
    latents = [{"sqnr_db": chunk["sqnr_db"]} for chunk in CHUNKS]
    assert set(summarize(latents, 1)) == {
        "sqnr_worst", "sqnr_median", "sqnr_last", "close", "drift"
    }  # fmt: skip


def test_a_video_is_close_until_it_is_not() -> None:
    far = [{"sqnr_db": value} for value in (math.inf, 30.0, 9.9, 30.0)]
    assert [summarize(far, first)["close"] for first in (0, 1, 2, 3)] == [2, 1, 0, 1]


def test_the_spread_is_that_of_a_sample() -> None:
    assert over_seeds(row("x", 1.0, 3.0), "drift") == (2.0, pytest.approx(2**0.5))
    middle, spread = over_seeds(row("x", 1.0), "drift")
    assert middle == 1.0 and math.isnan(spread)
    assert over_seeds(row("x", math.inf, math.inf), "drift")[0] == math.inf
    assert math.isnan(over_seeds(row("x", math.inf, 1.0), "drift")[0])


def test_parts_of_a_study_are_joined_by_seed() -> None:
    """Three seeds in two parts: the first has the even ones."""
    even, odd = row("x", 1.0, 2.0), row("x", 3.0)
    apart = [replace(sample, seed=2 * sample.seed) for sample in even.samples]
    later = [replace(odd.samples[0], seed=1)]
    (made,) = joined([[replace(even, samples=apart)], [replace(odd, samples=later)]])
    assert [(s.seed, s.numbers["drift"]) for s in made.samples] == [(0, 1.0), (1, 3.0), (2, 2.0)]
    assert (made.name, made.nbytes) == ("x", 50)
    with pytest.raises(ValueError, match="shorter"):
        joined([[even, odd], [odd]])


def test_a_table_says_what_is_equal_and_what_is_unknown() -> None:
    rows = [row("bf16", math.inf), row("int4", 1.0, 3.0), row("int2", math.nan)]
    assert table(rows, 100).splitlines() == [
        "variant  bytes  smaller  drift dB/chunk",
        "bf16        50    2.00x           equal",
        "int4        50    2.00x   2.000 +-1.414",
        "int2        50    2.00x               -",
    ]


def test_json_has_no_infinity() -> None:
    document = as_json([row("bf16", math.inf)], 100)
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)[0]["over_seeds"]["drift"] == {"mean": "inf", "deviation": "nan"}


def test_chunks_are_measured_against_the_reference() -> None:
    latents = torch.ones(1, 2, 4)
    frames = torch.full((2, 16, 16, 3), 100, dtype=torch.uint8)
    (found,) = measure([Chunk(0, latents, frames)], [Chunk(0, latents * 1.1, frames + 10)], CPU)
    assert found["sqnr_db"] == pytest.approx(20.0, abs=1e-4)
    assert found["psnr_db"] == pytest.approx(20 * math.log10(25.5))
    (found,) = measure([Chunk(0, latents, None)], [Chunk(0, latents, None)], CPU)
    assert found == {"sqnr_db": math.inf}
