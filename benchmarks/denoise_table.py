"""One text of a run of `benchmarks.denoise`: head, ceilings, forwards, ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.text_table import table as text_table

RANDOM = (
    "Weights and inputs are random, so no error here says how a trained model fares. Medians of\n"
    "device-event timings after a warm-up; both sides in one run, on one device."
)


def text_of(run: Mapping[str, Any]) -> str:
    parts = [head(run), RANDOM]
    parts += [ceilings(run["ceilings"])] if run.get("ceilings") else []
    parts += [forwards(run)] if run["forwards"] else []
    parts += [run["compile"]] if "compile" in run else []
    parts += [f"FAILED: {name}: {error}" for name, error in run["failed"].items()]
    parts += [pages(run)] if run["pages"] else []
    parts += [errors(run)] if run["errors"] else []
    parts += [rollouts(run)] if run.get("rollouts") else []
    parts += [ops(name, rows) for name, rows in run["ops"].items()]
    return "\n\n".join(parts) + "\n"


def head(run: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [f"$ {run['command']}", f"{run['device']}; {versions}"]
    for when, state in run["gpu"].items():
        if state:
            read = ", ".join(f"{name} {value}" for name, value in state.items())
            lines.append(f"{when}: {read}")
    return "\n".join([*lines, run["model"]])


def ceilings(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        (row["what"], row["shape"], _ms(row["time"]), _number(row["rate"]))
        for row in rows
        if row["time"] is not None
    ]
    return text_table(
        ("ceiling, measured here", "shape", "ms", "TFLOP/s, copy TB/s"), table, left=2
    )


def forwards(run: Mapping[str, Any]) -> str:
    rows, base = run["forwards"], run["forwards"][0]["time"]["median"]
    table = [
        (
            row["name"],
            _ms(row["time"]),
            f"{row['time']['p99'] * 1e3:.2f}",
            f"{base / row['time']['median']:.2f}x",
            _number(run["flop"] / row["time"]["median"] / 1e12),
            _gb(row.get("weights")),
            _gb(row.get("pages")),
            _gb(row.get("peak")),
            row.get("note", ""),
        )
        for row in rows
    ]
    columns = ("one denoise forward", "median ms", "p99 ms", "speedup", "TFLOP/s", "weights GB",
               "KV GB", "peak GB", "")  # fmt: skip
    return text_table(columns, table, left=1)


def pages(run: Mapping[str, Any]) -> str:
    rows = run["pages"]
    plain = next((row["bytes"] for row in rows if row["kv"] == "none"), None)
    slowest = max(row["time"]["median"] for row in rows)
    table = [
        (
            row["kv"],
            _gb(row["bytes"]),
            f"{plain / row['bytes']:.2f}x" if plain else "-",
            _ms(row["time"]),
            f"{row['time']['median'] / slowest - 1:+.1%}",
        )
        for row in rows
    ]
    columns = ("pages, in turns", "GB", "smaller than bf16", "forward ms", "against the slowest")
    return text_table(columns, table, left=1)


def errors(run: Mapping[str, Any]) -> str:
    table = []
    for row in run["errors"]:
        layers = row["layers"]
        ends = [layers[0], layers[len(layers) // 2], layers[-1]] if layers else []
        shown = [f"{pair['k']:.4f} / {pair['v']:.4f}" for pair in ends] or ["-"] * 3
        same = ("same" if row[run] == 0 else f"{row[run]:.1e}" for run in ("twice", "poisoned"))
        table.append((row["name"], f"{row['velocity']:.4f}", *shown, *same))
    columns = ("relative L2 against bf16", "velocity", "K / V of the first layer", "middle", "last",
               "run twice", "in poisoned memory")  # fmt: skip
    return text_table(columns, table, left=1)


def rollouts(run: Mapping[str, Any]) -> str:
    rows = run["rollouts"]
    table = [(row["name"], *(f"{error:.3f}" for error in row["chunks"])) for row in rows]
    chunks = (str(index) for index in range(len(rows[0]["chunks"])))
    columns = ("relative L2 of a free-running video, by chunk", *chunks)
    return text_table(columns, table, left=1)


def ops(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    total = sum(row["seconds"] for row in rows)
    table = [
        (
            row["op"],
            row["implementation"],
            row["shape"],
            row["calls"],
            f"{row['seconds'] * 1e3:.3f}",
            f"{row['seconds'] / total:.1%}",
            _number(row["rate"]) + (" TB/s" if row["ceiling"] == "copy" else " TFLOP/s"),
            "-" if row["share"] is None else f"{row['share']:.0%} of {row['ceiling']}",
        )
        for row in rows
        if row["seconds"] >= 0.0005 * total
    ]
    columns = (f"{name}: op", "runs as", "shape", "calls", "ms", "share", "rate", "ceiling")
    rest = f"all ops, one after the other: {total * 1e3:.2f} ms; rows under 0.05% are left out"
    return text_table(columns, table, left=3) + "\n" + rest


def _ms(time: Mapping[str, Any]) -> str:
    return f"{time['median'] * 1e3:.3f}"


def _gb(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e9:.2f}"


def _number(value: float | None) -> str:
    """Three digits, or all that are whole."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
