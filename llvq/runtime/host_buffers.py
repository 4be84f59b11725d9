"""Memory of the host that a GPU copies to, used again and again.

Pinned memory is what a GPU writes to on its own, and it is slow to get: a video needs a few
buffers, and each goes round.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from math import prod
from queue import Empty, SimpleQueue

import torch
from torch import Tensor


class HostBuffers:
    """Buffers of `nbytes`, at most `limit` of them, made as they are needed; pinned for a GPU.

    A tensor that is handed out is its holder's: its buffer comes back when the last tensor or array
    that views it dies, and never before. Nobody waits: whoever holds on to more than `limit` gets
    memory of their own, which is not pinned and not used again. May be shared by threads.
    """

    def __init__(self, nbytes: int, *, limit: int, pinned: bool) -> None:
        self.nbytes, self.limit, self.pinned = nbytes, limit, pinned
        self.made = 0
        # Buffers come back from wherever the garbage collector runs; this queue is reentrant.
        self._free: SimpleQueue[Tensor] = SimpleQueue()
        self._lock = threading.Lock()  # guards `made`

    def take(self) -> Tensor:
        """A buffer, uint8 [nbytes], with the bytes of whoever had it before."""
        try:
            buffer = self._free.get_nowait()
        except Empty:
            with self._lock:
                if self.made == self.limit:
                    return torch.empty(self.nbytes, dtype=torch.uint8)
                self.made += 1
            buffer = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=self.pinned)
        lent = buffer.numpy()
        weakref.finalize(lent, self._free.put, buffer).atexit = False
        return torch.from_numpy(lent)


def shaped(buffer: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The beginning of a buffer as a tensor."""
    return buffer[: prod(shape) * dtype.itemsize].view(dtype).view(*shape)
