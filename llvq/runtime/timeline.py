"""What happened when: spans of a run on its lanes, on one clock, as a trace for Perfetto.

On a GPU a span is two events on the stream that does the work, on a CPU two readings of the host's
clock. Nobody waits while it runs: events are read at the end, against the host's clock of then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llvq.errors import OutputError

Moment = Any  # torch.cuda.Event on a GPU, else float
PROCESS = 1  # all lanes are drawn as threads of one process


@dataclass(frozen=True)
class Span:
    """Something that was done on a lane, from `begin` to `end`: seconds after the first span."""

    name: str
    lane: str
    begin: float
    end: float
    chunk: int


class Timeline:
    """Collects spans. Lanes may be of different threads and devices."""

    def __init__(self) -> None:
        self._marks: list[_Marked] = []

    @contextmanager
    def span(self, name: str, lane: str, chunk: int, device: torch.device) -> Iterator[None]:
        """Time the block's work: on a GPU what it queues on the current stream of `device`.

        A block that is left by an error leaves no span.
        """
        begin = _now(device)
        yield
        self._marks.append(_Marked(name, lane, chunk, device, begin, _now(device)))

    def spans(self) -> list[Span]:
        """All spans so far by their begin. Waits for the devices."""
        marks = list(self._marks)
        clocks = {device: _Clock(device) for device in {mark.device for mark in marks}}
        timed = [
            (clocks[m.device].seconds(m.begin), clocks[m.device].seconds(m.end), m) for m in marks
        ]
        zero = min((begin for begin, _, _ in timed), default=0.0)
        spans = [Span(m.name, m.lane, b - zero, e - zero, m.chunk) for b, e, m in timed]
        return sorted(spans, key=lambda span: (span.begin, span.end))

    def write(self, path: Path) -> None:
        """The spans in the format of Chrome's traces, which ui.perfetto.dev opens too. Raises
        OutputError."""
        try:
            path.write_text(json.dumps(trace_of(self.spans()), indent=0) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write {path.name}",
                where=str(path),
                because=error.strerror or str(error),
                fix="choose a path in a folder that you may write to",
            ) from error


def span(
    timeline: Timeline | None, name: str, lane: str, chunk: int, device: torch.device
) -> AbstractContextManager[None]:
    """`timeline.span`, or nothing where nobody asked for a timeline."""
    return nullcontext() if timeline is None else timeline.span(name, lane, chunk, device)


def trace_of(spans: list[Span]) -> dict[str, Any]:
    """Chrome's trace format: one complete event per span, in microseconds, and names of lanes."""
    lanes = {lane: number for number, lane in enumerate(dict.fromkeys(s.lane for s in spans), 1)}
    names = [
        {"ph": "M", "name": "thread_name", "pid": PROCESS, "tid": number, "args": {"name": lane}}
        for lane, number in lanes.items()
    ]
    events = [
        {
            "ph": "X",
            "name": span.name,
            "pid": PROCESS,
            "tid": lanes[span.lane],
            "ts": round(span.begin * 1e6),
            "dur": round((span.end - span.begin) * 1e6),
            "args": {"chunk": span.chunk},
        }
        for span in spans
    ]
    return {"displayTimeUnit": "ms", "traceEvents": [*names, *events]}


def spans_of(trace: dict[str, Any]) -> list[Span]:
    """The inverse of `trace_of`."""
    events = trace["traceEvents"]
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    return [
        Span(
            event["name"],
            lanes[event["tid"]],
            event["ts"] / 1e6,
            (event["ts"] + event["dur"]) / 1e6,
            event["args"]["chunk"],
        )
        for event in events
        if event["ph"] == "X"
    ]


@dataclass(frozen=True)
class _Marked:
    name: str
    lane: str
    chunk: int
    device: torch.device
    begin: Moment
    end: Moment


def _now(device: torch.device) -> Moment:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


class _Clock:
    """Takes moments of a device to the clock of the host, by one that is on both."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # so that nothing of what is read is behind it
        self.moment = _now(device)
        if device.type == "cuda":
            self.moment.synchronize()
        self.host = time.perf_counter()

    def seconds(self, moment: Moment) -> float:
        if isinstance(moment, float):
            return moment
        return self.host - float(moment.elapsed_time(self.moment)) / 1e3
