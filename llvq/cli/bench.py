"""`llvq bench`: how fast a box is here, and whether its quantized ops are worth it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llvq.cli import options

if TYPE_CHECKING:
    from llvq.bench.linears import LinearTime
    from llvq.bench.run import Report
    from llvq.bench.timing import Spread

SLOWER = "slower than bf16"
SHAPE = ("tokens", "k", "features", "calls")
LINEAR_COLUMNS = ("quantized linear, alone", *SHAPE, "ms", "bf16 ms", "speedup", "")


def bench(
    box: Annotated[Path, typer.Argument(help="A box made by `llvq export`.")],
    chunks: Annotated[
        int, typer.Option(min=1, help="Chunks to time, after those that fill the window.")
    ] = 8,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps. Default: as trained.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of noise and embeddings.")] = 0,
    json: options.Json = False,
) -> None:
    """Measure a box on the device of its target.

    Each stage alone, then a video with decoding beside denoising, then every shape of quantized
    linear against bf16 of the same shape. Embeddings are random, so no text encoder is needed.
    Nothing is written.

    \b
      llvq bench model.llvq
      llvq bench model.llvq --chunks 30 --steps 2 --json
    """
    from llvq.bench.run import bench_box
    from llvq.cli.table import print_json, task_bars
    from llvq.runtime.load import open_runnable

    opened = open_runnable(box)
    with task_bars() as tell:
        report = bench_box(opened, chunks=chunks, steps=steps, seed=seed, tell=tell)
    if json:
        print_json(report.to_dict())
    else:
        show(report)


def show(report: Report) -> None:
    from llvq.cli.table import human, print_fields, print_table

    parts = (", ".join(f"{k} {v}" for k, v in d.items()) for d in (report.versions, report.gpu))
    software, state = parts
    video = report.end_to_end
    print_fields(
        [
            ("box", f"{report.box}   id {report.id[:16]}"),
            ("target", f"{report.target}, numerics {report.numerics}"),
            ("device", report.device),
            ("state", state or None),
            ("versions", software),
            ("video", f"{report.video}, {report.steps} steps, seed {report.seed}"),
            ("embeddings", report.embeddings),
            ("loading", f"{report.loading:.2f} s"),
            ("first frame", f"{video.first_frame:.3f} s after the session begins, warm"),
            ("end to end", f"{video.fps:.2f} FPS ({report.timed})"),
            ("chunk", f"p50 {_ms(video.chunk.median)} ms, p99 {_ms(video.chunk.p99)} ms"
                      f" of {video.chunk.runs}"),
            ("peak memory", f"{human(report.memory['bytes'])}, {report.memory['of']}"),
        ]
    )  # fmt: skip
    columns = ("stage, alone", "calls per chunk", "p50 ms", "p99 ms", "ms per chunk")
    print_table("", columns, _stage_rows(report))
    print_table("", LINEAR_COLUMNS, _linear_rows(report.linears))
    if report.slower:
        lost = sum(_lost(linear) for linear in report.slower)
        print(
            f"warning: {len(report.slower)} of {len(report.linears)} shapes are {SLOWER} on this "
            f"device; they cost {_ms(lost)} ms per denoise call"
        )


def _stage_rows(report: Report) -> Iterator[tuple[str, ...]]:
    for row in report.stages:
        per_chunk = row.per_chunk * row.time.median
        yield row.stage, f"{row.per_chunk:g}", *_both(row.time), _ms(per_chunk)


def _linear_rows(linears: list[LinearTime]) -> Iterator[tuple[str, ...]]:
    for row in linears:
        shape = (str(n) for n in (row.tokens, row.k, row.features, row.calls))
        ours, plain = row.quantized.median, row.bf16.median
        speedup = f"{plain / ours:.2f}x"
        yield row.op, *shape, _ms(ours), _ms(plain), speedup, SLOWER if row.slower else ""


def _lost(linear: LinearTime) -> float:
    return linear.calls * (linear.quantized.median - linear.bf16.median)


def _both(time: Spread) -> tuple[str, str]:
    return _ms(time.median), _ms(time.p99)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
