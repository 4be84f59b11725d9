"""The roofline of `llvq plan`: what it assumes, then a table for each product with the chip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llvq.cli.table import print_table

if TYPE_CHECKING:
    from llvq.roofline import Estimate, Roofline

# Ops under this share of a denoise call are shown as one row.
SMALL = 0.005
COLUMNS = ("one denoise call", "computes in", "bound by", "calls", "TFLOP", "GB", "ms", "share")


def print_roofline(roofline: Roofline) -> None:
    """Every number comes under the label and the assumptions."""
    print(f"\n{roofline.label}: a roofline")
    for assumption in roofline.assumptions:
        print(f"  {assumption}")
    for estimate in roofline.estimates:
        _print_estimate(roofline.label, estimate)


def _print_estimate(label: str, estimate: Estimate) -> None:
    product = estimate.product
    rates = ", ".join(f"{dtype} {rate:g} TFLOP/s" for dtype, rate in product.tflops.items())
    print(f"\n{product.name}: {rates}, {product.bandwidth:g} TB/s   ({product.source})")
    print_table(f"{product.name}, {label}", COLUMNS, _rows(estimate), left=3)
    stages = ", ".join(f"{name} {spent * 1e3:.1f}" for name, spent in estimate.stages.items())
    what = "FPS" if "decode" in estimate.stages else "FPS, decoding left out"
    print(
        f"ms of one call: {stages}; a chunk {estimate.chunk * 1e3:.1f}, "
        f"{estimate.fps:.1f} {what} ({label})"
    )


def _rows(estimate: Estimate) -> Iterator[tuple[str, ...]]:
    total = estimate.stages["denoise"]
    large = [op for op in estimate.ops if op.seconds >= SMALL * total]
    small = [op for op in estimate.ops if op.seconds < SMALL * total]
    for op in large:
        dtype = op.computes_in or "-"
        yield op.op, dtype, op.bound, *_numbers(op.calls, op.flop, op.nbytes, op.seconds, total)
    if small:
        sums = (sum(op.calls for op in small), sum(op.flop for op in small))
        moved, spent = sum(op.nbytes for op in small), sum(op.seconds for op in small)
        yield f"{len(small)} more", "-", "-", *_numbers(*sums, moved, spent, total)


def _numbers(calls: int, flop: int, nbytes: int, seconds: float, total: float) -> tuple[str, ...]:
    return (
        str(calls),
        f"{flop / 1e12:.2f}",
        f"{nbytes / 1e9:.2f}",
        f"{seconds * 1e3:.3f}",
        f"{seconds / total:.1%}",
    )
