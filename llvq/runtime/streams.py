"""Work on a device that no thread waits for, unless it must: uploads, and a stream per thread.

On a CPU work is done when its call returns, and there is nothing to order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llvq.runtime.timeline import Timeline, span


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; the host does not wait for the copy."""
    if device.type != "cuda" or value.device.type == "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def hand_over(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of a device on another one; no host waits.

    The copy comes after what the current stream of the one computes, and before what is queued on
    that of the other from here on. A tensor that is there already is not copied.
    """
    return value.to(device, non_blocking=device.type == "cuda")


def current_stream(device: torch.device) -> torch.cuda.Stream | None:
    """What this thread queues its work on; None on a CPU."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def mark(device: torch.device) -> torch.cuda.Event | None:
    """What has been queued on the current stream up to here, for another stream to wait for."""
    stream = current_stream(device)
    return None if stream is None else stream.record_event()


class Streams:
    """The streams of whoever opened a device: one for each use, made when it is first asked for.

    Libraries keep memory for every stream that they have seen (cuBLAS a workspace of 32 MiB), so
    sessions that come one after another work on the same ones. May be shared by threads.
    """

    def __init__(self) -> None:
        # A recording begins by waiting for the device, which none may do while another is made.
        self.recording = threading.Lock()
        self._made: dict[tuple[torch.device, str], torch.cuda.Stream] = {}
        self._lock = threading.Lock()  # guards `_made`

    def of(self, device: torch.device, use: str) -> torch.cuda.Stream | None:
        """The stream for a use; None on a CPU."""
        if device.type != "cuda":
            return None
        with self._lock:
            if (device, use) not in self._made:
                self._made[device, use] = torch.cuda.Stream(device)
            return self._made[device, use]


class Lane:
    """The stream of one thread, beside that of the thread which feeds it; and one that copies to
    the host what this one makes, while it makes the next."""

    def __init__(
        self, streams: Streams, device: torch.device, timeline: Timeline | None = None
    ) -> None:
        self.device, self.timeline = device, timeline
        self._stream = streams.of(device, "decode")
        self._copies = streams.of(device, "copy")

    @contextmanager
    def after(self, ready: torch.cuda.Event | None) -> Iterator[None]:
        """Queue the block's work here, behind what was marked.

        Waits for all of it before it leaves, so that tensors which the block was given may be freed
        by whoever owns them, and tensors that it leaves are whole.
        """
        if self._stream is None or self._copies is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if ready is not None:
                self._stream.wait_event(ready)
            try:
                yield
            finally:
                self._stream.synchronize()
                self._copies.synchronize()

    def download(self, value: Tensor, host: Tensor, chunk: int) -> torch.cuda.Event | None:
        """Copy what the block has made into memory of the host: whole once the event has happened,
        or the block is left; at once where there is no event."""
        if self._stream is None or self._copies is None:
            with span(self.timeline, "copy", "copy to host", chunk, self.device):
                host.copy_(value)
            return None
        self._copies.wait_stream(self._stream)
        with (
            torch.cuda.stream(self._copies),
            span(self.timeline, "copy", "copy to host", chunk, self.device),
        ):
            host.copy_(value, non_blocking=True)
        value.record_stream(self._copies)
        return self._copies.record_event()
