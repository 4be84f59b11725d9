"""Spans come on one clock, in order, and survive the way into a trace and back."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from llvq.errors import OutputError
from llvq.runtime import timeline as timeline_module
from llvq.runtime.timeline import Span, Timeline, span, spans_of, trace_of

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SPANS = [
    Span("denoise", "denoise", 0.0, 0.25, 0),
    Span("decode", "decode", 0.125, 0.5, 0),
    Span("denoise", "denoise", 0.25, 0.5, 1),
    Span("decode", "decode", 0.5, 0.75, 1, "MemoryError"),
]


def test_a_span_lasts_as_long_as_its_block() -> None:
    timeline = Timeline()
    for chunk in range(2):
        with span(timeline, "sleep", "bed", chunk, CPU):
            time.sleep(0.02)
    first, second = timeline.spans()
    assert (first.name, first.lane, first.chunk, first.begin) == ("sleep", "bed", 0, 0.0)
    assert 0.02 <= first.end < second.begin + 1e-9 and second.end - second.begin >= 0.02


def test_without_a_timeline_nothing_is_kept() -> None:
    with span(None, "sleep", "bed", 0, CPU):
        pass
    assert Timeline().spans() == []


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_a_span_that_says_so(error: BaseException) -> None:
    timeline = Timeline()
    with pytest.raises(type(error)), span(timeline, "sleep", "bed", 0, CPU):
        raise error
    with span(timeline, "sleep", "bed", 1, CPU):
        pass
    assert [(s.chunk, s.error) for s in timeline.spans()] == [(0, type(error).__name__), (1, "")]


def test_a_device_that_is_down_takes_its_spans_along_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a GPU after an access outside of its memory: every call raises."""
    lost, now, down = torch.device("meta"), timeline_module._now, False

    def answer(device: torch.device) -> float:
        if down and device == lost:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return float(now(device))

    monkeypatch.setattr(timeline_module, "_now", answer)
    timeline = Timeline()
    for device in (lost, CPU):
        with span(timeline, "a", str(device), 0, device):
            pass
    with pytest.raises(ValueError, match="wrong"), span(timeline, "b", "meta", 1, lost):
        down = True
        raise ValueError("wrong")
    assert [(s.name, s.lane) for s in timeline.spans()] == [("a", "cpu")]


def test_a_trace_has_a_named_thread_per_lane() -> None:
    events = trace_of(SPANS)["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(names.values()) == ["decode", "denoise"]
    decode = next(e for e in events if e["name"] == "decode")
    assert names[decode["tid"]] == "decode" and decode["args"] == {"chunk": 0}
    assert (decode["ph"], decode["ts"], decode["dur"]) == ("X", 125_000, 375_000)
    assert events[-1]["args"] == {"chunk": 1, "error": "MemoryError"}


def test_a_trace_is_read_back() -> None:
    assert spans_of(json.loads(json.dumps(trace_of(SPANS)))) == SPANS


def test_a_trace_is_written(tmp_path: Path) -> None:
    timeline = Timeline()
    with span(timeline, "a", "b", 3, CPU):
        pass
    timeline.write(tmp_path / "trace.json")
    (found,) = spans_of(json.loads((tmp_path / "trace.json").read_text()))
    assert (found.name, found.lane, found.chunk) == ("a", "b", 3)


def test_a_trace_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write trace\.json") as caught:
        Timeline().write(tmp_path / "missing" / "trace.json")
    assert str(caught.value).count("\n") == 3


def test_half_a_trace_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "trace.json").mkdir()
    with pytest.raises(OutputError, match=r"cannot write trace\.json"):
        Timeline().write(tmp_path / "trace.json")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


@gpu
def test_on_a_gpu_a_span_is_what_the_gpu_does_on_the_clock_of_the_host() -> None:
    """Queued in no time, run later; and beside it a span of the host around all of it."""
    device, timeline = torch.device("cuda", torch.cuda.current_device()), Timeline()
    x = torch.randn(4096, 4096, device=device)
    torch.mm(x, x)
    with span(timeline, "all", "host", 0, CPU):
        torch.cuda.set_sync_debug_mode("error")
        try:
            with span(timeline, "work", "gpu", 0, device):
                for _ in range(20):
                    torch.mm(x, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    found = {s.name: s for s in timeline.spans()}
    assert found["all"].begin <= found["work"].begin + 1e-3
    assert found["work"].end <= found["all"].end + 1e-3
    assert found["work"].end - found["work"].begin > 1e-3
