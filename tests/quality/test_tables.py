"""The tables of a comparison that is made by hand, and cells against what they stand for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from llvq.quality.attention import AttentionError
from llvq.quality.calls import CallErrors
from llvq.quality.comparison import Comparison, Video
from llvq.quality.frames import FrameError
from llvq.quality.layers import LayerError, QuantizedLayer
from llvq.quality.metrics import NOTHING, Energies
from llvq.quality.rollout import ChunkError
from llvq.quality.sizes import PartBytes, Sizes
from llvq.quality.structure import PassRow, Structure
from llvq.quality.tables import WORST, Table, all_tables, bytes_text, decibel, flat
from llvq.runtime.session import Chunk


def at(level: float) -> Energies:
    """The sums of a pair whose SQNR is `level` dB, its error orthogonal to the signal."""
    noise = 10 ** (-level / 10)
    return Energies(signal=1.0, noise=noise, power=1.0 + noise, dot=1.0)


def chunks(*levels: float, frames: FrameError | None = None) -> list[ChunkError]:
    return [ChunkError(index, at(level), frames) for index, level in enumerate(levels)]


def layer(block: int, name: str, weight: float, output: float | None) -> LayerError:
    path = f"dit.blocks.{block}.{name}"
    stacked = QuantizedLayer(path, f"{path}.weight", path, 0, 0, 8)
    if output is None:
        return LayerError(stacked, at(weight))
    calls = [at(output)] * 2  # of two chunks, in one step each
    return LayerError(stacked, at(weight), CallErrors({"denoise": calls, "refresh": calls}))


LINEAR, FP4 = "aten.linear.default", "llvq.nvfp4_linear.default"


@pytest.fixture
def comparison() -> Comparison:
    structure = Structure(
        nodes={"denoise": (100, 80), "decode": (40, 40)},
        ops={
            "denoise": {"aten.linear.default": (17, 1), "llvq.nvfp4_linear.default": (0, 12)},
            "decode": {},
        },
        passes=[
            PassRow("insert", "quantized", "rounds", (90, 100), 6, 6, 0, 0, {LINEAR: (17, 16)}),
            PassRow("fuse-a", "fused", "exact", (100, 95), 6, 4, 1, 1, {LINEAR: (16, 9)}),
            PassRow(
                "fuse-b", "fused", "exact", (95, 90), 6, 4, 1, 1, {LINEAR: (9, 1), FP4: (0, 8)}
            ),
        ],
        fused={"self_attn.q_k_v": 2},
        excluded={"dit.head.head": "*head.head", "dit.odd": None},
    )
    sizes = Sizes(
        parts=[PartBytes("dit", 6400, 1600, 200, 8, 792), PartBytes("vae", 1000, kept=1000)],
        unused=2000,
        kv_format="nvfp4",
        kv_chunks=4,
        kv=(3200, 900),
    )
    seen = FrameError(41.5, 0.9876, vmaf=93.25)
    video = Video(chunks(30, 20, frames=seen), chunks(30, 25), None, None, [], [], steps=1)
    layers = [layer(0, "q", 20, 15), layer(1, "q", 20, 12), layer(0, "k", 21, None)]
    history = CallErrors({"denoise": [NOTHING, at(18)], "refresh": [NOTHING, NOTHING]})
    attention = [AttentionError("dit.blocks.0.self_attn", history)]
    return Comparison({}, [], structure, sizes, layers, attention, video)


def table(comparison: Comparison, title: str) -> Table:
    return next(t for t in all_tables(comparison) if t.title.startswith(title))


def test_every_table_is_rectangular_and_titled_once(comparison: Comparison) -> None:
    tables = all_tables(comparison)
    assert len({t.title for t in tables}) == len(tables) == 13
    assert all(len(row) == len(t.columns) for t in tables for row in t.rows)
    assert all(isinstance(cell, str) for t in tables for row in t.rows for cell in row)


def test_ops_by_level_add_up_the_passes_of_a_level(comparison: Comparison) -> None:
    found = table(comparison, "Ops by level")
    assert found.columns == ("op", "quantized", "fused")
    assert found.rows == [(LINEAR, "17 -> 16", "16 -> 1"), (FP4, "", "0 -> 8")]


def test_graphs_show_changed_ops_and_name_the_stages_that_kept_theirs(
    comparison: Comparison,
) -> None:
    found = table(comparison, "Graphs")
    assert found.columns == ("op", "denoise") and "Unchanged: decode." in found.caption
    assert found.rows == [
        ("all nodes", "100 -> 80"),
        ("aten.linear.default", "17 -> 1"),
        ("llvq.nvfp4_linear.default", "0 -> 12"),
    ]
    rows = table(comparison, "Passes").rows
    assert rows[1] == ("fuse-a", "fused", "exact", "100 -> 95", "6", "4", "1", "1")


def test_kept_layers_name_their_glob_or_the_tolerated_miss(comparison: Comparison) -> None:
    assert table(comparison, "Fused and").rows == [
        ("one GEMM", "self_attn.q_k_v", "2 x"),
        ("kept", "dit.head.head", "*head.head"),
        ("kept", "dit.odd", "a miss that the recipe tolerates"),
    ]


def test_bytes_of_parts_and_their_total(comparison: Comparison) -> None:
    found = table(comparison, "Bytes of the weights")
    assert found.rows == [
        ("dit", "6.4 kB", "1.6 kB", "200 B", "8 B", "792 B", "2.6 kB", "2.46x"),
        ("vae", "1 kB", "-", "-", "-", "1 kB", "1 kB", "1.00x"),
        ("total", "7.4 kB", "1.6 kB", "200 B", "8 B", "1.79 kB", "3.6 kB", "2.06x"),
    ]
    assert "2 kB more that no graph reads" in found.caption
    (kv,) = table(comparison, "Bytes of the KV cache").rows
    assert kv == ("4", "3.2 kB", "900 B", "nvfp4", "3.56x")


def test_kinds_add_energies_up_and_the_worst_layer_is_first(comparison: Comparison) -> None:
    """Two layers of 15 and 12 dB and of one signal: the mean of their noises, in dB."""
    q, k, pages = table(comparison, "Layers by kind").rows
    mean = -10 * np.log10(np.mean(10 ** (-np.array([15.0, 12.0]) / 10)))
    noise = 10 ** (-mean / 10)
    assert q[:2] == ("q", "2") and q[2] == "20.00" and q[5] == f"{mean:.2f}"
    assert q[6:] == (f"{1 / np.sqrt(1 + noise):.5f}", f"{np.sqrt(noise):.4f}")
    assert k[5:] == ("-", "-", "-")  # it never ran
    assert pages[:6] == ("self_attn, pages", "1", "-", "-", "-", "18.00")
    worst = table(comparison, "The worst 3 of 3 layers").rows
    assert [row[0].removeprefix("dit.blocks.") for row in worst] == ["1.q", "0.q", "0.k"]
    many = [layer(block, "q", 20, float(block)) for block in range(WORST + 5)]
    assert len(table(replace(comparison, layers=many), "The worst 10 of 15").rows) == WORST


def test_steps_and_chunks_part_the_errors_of_outputs(comparison: Comparison) -> None:
    found = table(comparison, "Outputs by chunk and step")
    assert found.columns == ("chunk", "step 1", "refresh")
    assert found.rows == [("0", "13.50", "13.50"), ("1", "15.00", "13.50")]


def test_chunks_stand_beside_their_forced_twins(comparison: Comparison) -> None:
    first, second = table(comparison, "Chunks").rows
    assert (first[0], first[1], first[4]) == ("0", "30.00", "30.00")
    assert (second[1], second[4]) == ("20.00", "25.00")


def test_frames_of_every_run_that_has_them(comparison: Comparison) -> None:
    seen = ("free-running", "0", "41.50", "0.9876", "-", "93.25")
    assert table(comparison, "Frames against").rows[0] == seen
    floor = chunks(50, 45, frames=FrameError(60.0, 1.0, 0.5))
    video = replace(comparison.video, floor=floor, free=chunks(30, 20))
    rows = table(replace(comparison, video=video), "Frames against").rows
    assert [row[:2] for row in rows] == [("noise floor", "0"), ("noise floor", "1")]
    assert rows[0][2:] == ("60.00", "1.0000", "0.5000", "-")


def test_health_is_shown_for_both_sides(comparison: Comparison) -> None:
    """Flat grey: all its luma, and nothing else."""
    grey = Chunk(0, torch.zeros(1), torch.full((2, 8, 8, 3), 100, dtype=torch.uint8))
    video = replace(comparison.video, baseline=[grey], quantized=[grey, grey])
    rows = table(replace(comparison, video=video), "Health").rows
    assert [row[:3] for row in rows] == [
        ("BF16", "0", "100"), ("NVFP4", "0", "100"), ("NVFP4", "1", "100"),
    ]  # fmt: skip
    assert [row[-2] for row in rows] == ["1", "1", "2"]  # frozen


def test_a_comparison_without_frames_has_no_table_of_them(comparison: Comparison) -> None:
    bare = replace(comparison.video, free=chunks(30, 20))
    titles = [t.title for t in all_tables(replace(comparison, video=bare))]
    assert not any("rames" in title for title in titles)


def test_the_summary_is_that_of_numpy(comparison: Comparison) -> None:
    levels = [30.0, 26.0, 27.0, 20.0]
    video = replace(comparison.video, free=chunks(*levels), forced=chunks(*levels[:1] * 4))
    free, forced = table(replace(comparison, video=video), "SQNR of latents").rows
    drift = np.polyfit(range(4), levels, 1)[0]
    wanted = (min(levels), np.median(levels), levels[-1], drift)
    assert free == ("free-running", *(f"{value:.2f}" for value in wanted))
    assert forced[0] == "teacher-forced" and forced[-1] in ("0.00", "-0.00")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "-"), (1, "1 B"), (999, "999 B"), (1000, "1 kB"), (2_100_000, "2.1 MB"),
     (999_999, "1 MB"), (5_110_000_000, "5.11 GB"), (12 * 10**15, "12 PB"), (-2000, "-2 kB")],
)  # fmt: skip
def test_bytes_in_powers_of_a_thousand(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_decibels_that_are_not_finite_are_spelt() -> None:
    assert [decibel(v) for v in (23.961, math.inf, -math.inf, math.nan)] == [
        "23.96", "inf", "-inf", "nan",
    ]  # fmt: skip


def test_nested_data_is_flat_rows() -> None:
    document = {"a_b": {"c": 1, "d_e": {"f": 2}}, "list": ["x", "y"], "none": None, "no": False}
    assert flat(document) == [
        ("a_b c", "1"), ("a_b d_e f", "2"), ("list", "x / y"), ("none", "-"), ("no", "False"),
    ]  # fmt: skip
