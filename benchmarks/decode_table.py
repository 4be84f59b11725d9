"""The tables of `benchmarks.decode`, from its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.text_table import table


def text_of(run: Mapping[str, Any]) -> str:
    software = ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    state = ", ".join(f"{name} {value}" for name, value in run.get("gpu", {}).items())
    head = [
        f"$ {run['command']}",
        f"{run.get('device', '-')}; {software}",
        *([state] if state else []),
    ]
    parts = ["\n".join(head)]
    if run["boxes"]:
        parts.append(chunks(run))
        parts += [ops(box, run["cudnn"]) for box in run["boxes"] if box["ops"]]
    return "\n\n".join(parts) + "\n"


def chunks(run: Mapping[str, Any]) -> str:
    rows = []
    cudnn = max(run["cudnn"].values(), default=None)
    for box in run["boxes"]:
        flop = box["calls"] * sum(row["flop"] for row in box["ops"])
        floor = flop / (cudnn * 1e12) if cudnn and flop else None
        recipe = ", ".join(f"{name} {value}" for name, value in box["decode"].items())
        for kind in ("eager", "graph"):
            if box[kind] is not None:
                seconds = box[kind]["median"]
                rows.append(
                    (
                        f"{box['name']} ({recipe}), {kind}",
                        *_times(box[kind]),
                        f"{box['frames'] / seconds:.1f}",
                        f"{flop / seconds / 1e12:.1f}" if flop else "-",
                        f"{floor / seconds:.0%} of {floor * 1e3:.0f} ms" if floor else "-",
                        _gb(box["held"]),
                        _gb(box["peak"]),
                        "-" if box.get("psnr") is None else f"{box['psnr']:.2f} dB",
                    )
                )
    frames = run["boxes"][0]["frames"]
    for row in run["plain"]:
        rate = f"{frames / row['time']['median']:.1f}"
        memory = _gb(row["held"]), _gb(row["peak"])
        rows.append((row["name"], *_times(row["time"]), rate, "-", "-", *memory, "-"))
    columns = (f"a steady chunk, {frames} frames", "median ms", "p99 ms", "FPS", "TFLOP/s",
               "floor at cuDNN's best", "held GB", "peak GB", "PSNR, of the first")  # fmt: skip
    return table(columns, rows, left=1)


def ops(box: Mapping[str, Any], cudnn: Mapping[str, float]) -> str:
    total = sum(row["seconds"] for row in box["ops"])
    rows = [
        (
            row["op"],
            row["implementation"],
            row["shape"],
            row["calls"],
            f"{row['seconds'] * 1e3:.3f}",
            f"{row['seconds'] / total:.1%}",
            _rate(row),
            f"{cudnn[row['shape']]:.3g}" if row["shape"] in cudnn else "-",
        )
        for row in box["ops"]
        if row["seconds"] >= 0.005 * total
    ]
    columns = (f"{box['name']}, one call: op", "runs as", "shape", "calls", "ms", "share", "rate",
               "cuDNN bf16")  # fmt: skip
    rest = f"all ops, one after the other: {total * 1e3:.2f} ms; rows under 0.5% are left out"
    return table(columns, rows, left=3) + "\n" + rest


def _rate(row: Mapping[str, Any]) -> str:
    unit = "TB/s" if row["ceiling"] == "copy" else "TFLOP/s"
    return f"{row['rate']:.3g} {unit}"


def _times(time: Mapping[str, Any]) -> Sequence[str]:
    return [f"{time[name] * 1e3:.2f}" for name in ("median", "p99")]


def _gb(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e9:.2f}"
