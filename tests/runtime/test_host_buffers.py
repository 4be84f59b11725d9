"""A buffer is used again once nothing views it, and not a moment before."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llvq.runtime.host_buffers import HostBuffers, shaped


def test_a_buffer_that_is_given_back_is_handed_out_again() -> None:
    pool = HostBuffers(64, limit=2, pinned=False)
    places = set()
    for _ in range(5):
        places.add(pool.take().data_ptr())
    assert len(places) == pool.made == 1


VIEWS: dict[str, Callable[[Tensor], object]] = {
    "slice": lambda t: t[8:],
    "reshaped": lambda t: t.view(8, 8),
    "other dtype": lambda t: shaped(t, (2, 4), torch.bfloat16),
    "detached": lambda t: t.detach(),
    "array": lambda t: t.numpy(),
    "part of an array": lambda t: t.numpy()[3:],
    "storage": lambda t: t.untyped_storage(),
}


@pytest.mark.parametrize("name", VIEWS)
def test_whoever_keeps_a_view_keeps_the_buffer(name: str) -> None:
    pool = HostBuffers(64, limit=2, pinned=False)
    kept = VIEWS[name](pool.take())
    places = {pool.take().data_ptr() for _ in range(3)}
    assert len(places) == 1 and pool.made == 2
    del kept
    gc.collect()
    both = {pool.take().data_ptr() for _ in range(3)}
    assert len(both) == 2 and places < both


def test_beyond_the_limit_memory_is_the_holders_own() -> None:
    pool = HostBuffers(64, limit=2, pinned=False)
    kept = [pool.take() for _ in range(5)]
    for value, buffer in enumerate(kept):
        buffer.fill_(value)
    assert [int(buffer[63]) for buffer in kept] == [0, 1, 2, 3, 4]
    assert pool.made == 2
    places = {buffer.data_ptr() for buffer in kept[:2]}
    del buffer, kept
    assert {pool.take().data_ptr(), pool.take().data_ptr()} <= places


def test_threads_never_share_a_buffer() -> None:
    pool, wrong = HostBuffers(256, limit=4, pinned=False), []

    def use(mark: int) -> None:
        for _ in range(500):
            buffer = pool.take().fill_(mark)
            if not bool((buffer == mark).all()):
                wrong.append(mark)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pool.made <= 4


def test_a_buffer_has_room_for_smaller_tensors() -> None:
    buffer = torch.zeros(64, dtype=torch.uint8)
    x = shaped(buffer, (2, 3), torch.float32)
    assert x.shape == (2, 3) and x.data_ptr() == buffer.data_ptr()
    x.fill_(1.0)
    assert buffer[:24].any() and not buffer[24:].any()


def test_a_pool_that_is_gone_leaves_its_buffers_to_their_holders() -> None:
    kept = HostBuffers(64, limit=1, pinned=False).take().fill_(5)
    gc.collect()
    torch.empty(64, dtype=torch.uint8).fill_(9)
    assert bool((kept == 5).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_buffers_for_a_gpu_are_pinned() -> None:
    pool, x = HostBuffers(1 << 20, limit=1, pinned=True), torch.randn(1 << 18, device="cuda")
    assert pool.take().is_pinned()
    host = shaped(pool.take(), x.shape, x.dtype)
    host.copy_(x, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(host, x.cpu()) and pool.made == 1
