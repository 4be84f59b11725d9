"""Work on a device that no thread waits for, unless it must: uploads, and a stream per thread.

On a CPU everything here does nothing: work is done when its call returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; the host does not wait for the copy."""
    if device.type != "cuda" or value.device.type == "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def download(value: Tensor) -> Tensor:
    """A tensor in the memory of the host, whole: waits for what the current stream computes."""
    if value.device.type != "cuda":
        return value
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    host.copy_(value, non_blocking=True)
    torch.cuda.current_stream(value.device).synchronize()
    return host


def mark(device: torch.device) -> torch.cuda.Event | None:
    """What has been queued on the current stream up to here, for another stream to wait for."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


class Lane:
    """The stream of one thread, beside that of the thread which feeds it."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def after(self, ready: torch.cuda.Event | None) -> Iterator[None]:
        """Queue the block's work here, behind what was marked.

        Waits for all of it before it leaves, so that tensors which the block was given may be freed
        by whoever owns them, and tensors that it leaves are whole.
        """
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if ready is not None:
                self._stream.wait_event(ready)
            yield
            self._stream.synchronize()
