"""What happened when: spans of a run on its lanes, on one clock, as a trace for Perfetto.

On a GPU a span is two events on the stream that does the work, on a CPU two readings of the host's
clock. Nobody waits while it runs: events are read at the end, against the host's clock of then.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from llvq.errors import OutputError

Moment = Any  # torch.cuda.Event on a GPU, else float
PROCESS = 1  # all lanes are drawn as threads of one process


@dataclass(frozen=True)
class Span:
    """Something that was done on a lane, from `begin` to `end`: seconds after the first span.

    `error`: the kind of error that ended it, if one did.
    """

    name: str
    lane: str
    begin: float
    end: float
    chunk: int
    error: str = ""


class Timeline:
    """Collects spans. Lanes may be of different threads and devices."""

    def __init__(self) -> None:
        self._marks: list[_Marked] = []

    def span(
        self, name: str, lane: str, chunk: int, device: torch.device
    ) -> AbstractContextManager[None]:
        """Time the block's work: on a GPU what it queues on the current stream of `device`.

        A block that is left by an error leaves a span that says so.
        """
        return _Open(self._marks, name, lane, chunk, device)

    def spans(self) -> list[Span]:
        """All spans so far by their begin. Waits for the devices.

        A device that an error has taken down tells no times, so that its spans are left out.
        """
        marks, timed = list(self._marks), []
        for device in {mark.device for mark in marks}:
            with suppress(torch.AcceleratorError):
                clock = _Clock(device)
                own = [mark for mark in marks if mark.device == device]
                timed += [(clock.seconds(m.begin), clock.seconds(m.end), m) for m in own]
        zero = min((begin for begin, _, _ in timed), default=0.0)
        spans = [Span(m.name, m.lane, b - zero, e - zero, m.chunk, m.error) for b, e, m in timed]
        return sorted(spans, key=lambda span: (span.begin, span.end))

    def write(self, path: Path) -> None:
        """The spans in the format of Chrome's traces, which ui.perfetto.dev opens too: a whole
        file or none. Raises OutputError."""
        text = json.dumps(trace_of(self.spans()), indent=0) + "\n"
        part = path.with_name(f".{path.name}.part-{os.getpid()}")
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
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
            "args": {"chunk": span.chunk} | ({"error": span.error} if span.error else {}),
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
            event["args"].get("error", ""),
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
    error: str


class _Open:
    """A span whose block is not left yet."""

    def __init__(
        self, marks: list[_Marked], name: str, lane: str, chunk: int, device: torch.device
    ) -> None:
        self.marks, self.name, self.lane = marks, name, lane
        self.chunk, self.device = chunk, device

    def __enter__(self) -> None:
        self.begin = _now(self.device)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        name = "" if kind is None else kind.__name__
        with suppress(torch.AcceleratorError):  # A device that is down says so wherever it is used.
            place = self.name, self.lane, self.chunk, self.device
            self.marks.append(_Marked(*place, self.begin, _now(self.device), name))


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
