"""The tables of `benchmarks.end_to_end`, from its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.text_table import table
from benchmarks.watched_video import Memory, Watched, figures

COUNTED = (
    "FPS: all frames over the time from asking for a session to the last one on the host; steady\n"
    "is behind a full window. A chunk takes from its frames to those of the next."
)
BYTES = (
    "tensors: max_memory_allocated; pools: max_memory_reserved; device: what the driver has given\n"
    "away, its own part included. First and last are medians of quarters behind a full window;\n"
    "slopes are per chunk."
)


def text_of(run: Mapping[str, Any]) -> str:
    software = ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    state = ", ".join(f"{name} {value}" for name, value in run.get("gpu", {}).items())
    lines = [
        f"$ {run['command']}",
        f"{' + '.join(run.get('devices', []))}; {software}",
        *([state] if state else []),
        f"{run['box']}, id {run['id'][:16]}, {run['target']}, numerics {run['numerics']}",
        run.get("video", ""),
    ]
    if "loading" in run:
        lines.append(f"loading {run['loading']:.1f} s, pools then {_gb(run['loading_peak'])} GB")
    if run.get("streamed"):
        moved = run["streamed"]
        lines.append(
            f"low memory: {moved['host'] / 1e9:.2f} GB of weights on the host, per denoise call "
            f"{moved['copied']['denoise'] / 1e9:.2f} GB are copied"
        )
    videos = [_watched(video) for video in run["videos"]]
    parts = ["\n".join(lines)]
    if any(video.ends for video in videos):
        parts += [speed(videos), COUNTED, flat(videos), memory(videos), BYTES]
    if "plan" in run:
        parts.append(planned(run["plan"], videos))
    return "\n\n".join(parts) + "\n"


def _watched(video: Mapping[str, Any]) -> Watched:
    return Watched(**{**video, "memory": [Memory(**each) for each in video["memory"]]})


def speed(videos: Sequence[Watched]) -> str:
    rows = []
    plain = {v.steps: figures(v)["fps_steady"] for v in videos if v.name.startswith("PyTorch")}
    for video in videos:
        found = figures(video)
        steady, base = found["fps_steady"], plain.get(video.steps)
        done = f"{found['chunks']} of {video.chunks}"
        rows.append(
            (
                f"{video.name}, {video.steps} steps",
                _number(found["fps"], 2),
                _number(steady, 2),
                _ms(found["first_frame"]),
                _ms(found["p50"]),
                _ms(found["p99"]),
                done,
                found["frames"],
                f"{steady / base:.2f}x" if steady and base else "-",
            )
        )
    columns = ("end to end", "FPS", "steady FPS", "first frame ms", "chunk p50 ms", "p99 ms",
               "chunks", "frames", "steady, over PyTorch")  # fmt: skip
    return table(columns, rows, left=1)


def flat(videos: Sequence[Watched]) -> str:
    rows = []
    for video in videos:
        found = figures(video)
        if found["time"] is not None:
            rows.append((_name(video, "chunk ms"), *_flat(found["time"], 1e3, 1)))
        for each in found["memory"]:
            if each["flat"] is not None:
                name = _name(video, f"GB on {each['device']}")
                rows.append((name, *_flat(each["flat"], 1e-9, 3)))
    return table(("over the video", "first quarter", "last", "change", "slope"), rows, left=1)


def _name(video: Watched, what: str) -> str:
    return f"{video.name}, {video.steps} steps: {what}"


def _flat(row: Mapping[str, float], unit: float, digits: int) -> tuple[str, ...]:
    change = row["last"] / row["first"] - 1
    ends = (f"{row[name] * unit:.{digits}f}" for name in ("first", "last"))
    return (*ends, f"{change:+.2%}", f"{row['slope']:+.4%}")


def memory(videos: Sequence[Watched]) -> str:
    rows = [
        (
            f"{video.name}, {video.steps} steps",
            each["device"],
            *(_gb(each[kind]) for kind in ("allocated", "reserved", "used")),
        )
        for video in videos
        for each in figures(video)["memory"]
    ]
    return table(("peak memory, GB", "on", "tensors", "pools", "device"), rows, left=2)


def planned(plan: Mapping[str, Any], videos: Sequence[Watched]) -> str:
    """What `llvq plan` says of a video beside the most that one of llvq had of all devices."""
    ours = [figures(video)["memory"] for video in videos if video.name == "llvq" and video.ends]
    measured = max((sum(row["reserved"] or 0 for row in each) for each in ours), default=0)
    rows = [("weights, and room for others", _gb(plan["held"]))]
    rows += [(f"held: {name}", _gb(nbytes)) for name, nbytes in plan["state"].items()]
    rows += [(f"workspace: {name}", _gb(nbytes)) for name, nbytes in plan["workspace"].items()]
    rows.append(("planned, all", _gb(plan["generating"])))
    if measured:
        rows.append(("measured, pools", _gb(measured)))
        rows.append(("planned, of what was measured", f"{plan['generating'] / measured - 1:+.1%}"))
    return table(("llvq plan", "GB"), rows, left=1)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"


def _gb(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e9:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
