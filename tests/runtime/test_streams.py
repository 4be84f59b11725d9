"""On a CPU uploads, downloads and lanes do nothing; on a GPU nobody waits who need not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llvq.runtime.streams import Lane, Streams, hand_over, mark, upload

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_on_a_cpu_a_tensor_is_where_it_is() -> None:
    x = torch.randn(3)
    assert upload(x, CPU) is x and hand_over(x, CPU) is x and mark(CPU) is None


def test_on_a_cpu_a_lane_is_the_thread_itself() -> None:
    done = []
    with Lane(Streams(), CPU).after(mark(CPU)):
        done.append(1)
    assert done == [1]


def test_on_a_cpu_a_download_is_a_copy() -> None:
    x, host = torch.randn(3), torch.full((3,), torch.nan)
    lane = Lane(Streams(), CPU)
    with lane.after(None):
        lane.download(x, host, 0)
    assert torch.equal(x, host)


def test_a_stream_is_made_once_for_each_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads ask for it, and for however many sessions."""
    made: list[torch.device] = []

    def make(device: torch.device) -> object:
        time.sleep(0.01)
        made.append(device)
        return object()

    monkeypatch.setattr(torch.cuda, "Stream", make)
    streams, devices = Streams(), [torch.device("cuda", index) for index in range(2)]
    asked = [(device, use) for device in devices for use in ("decode", "copy")]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda one: streams.of(*one), asked * 6))
    assert found == found[:4] * 6 and len(set(found)) == 4 and len(made) == 4
    assert streams.of(CPU, "decode") is None and len(made) == 4
    assert Lane(streams, devices[0])._stream is found[0]


def test_an_error_leaves_a_lane() -> None:
    with pytest.raises(ValueError, match="wrong"), Lane(Streams(), CPU).after(None):
        raise ValueError("wrong")


@gpu
def test_a_lane_begins_behind_its_mark_and_ends_with_its_work() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.randn(2048, 2048, device=device)
    y = x
    for _ in range(50):
        y = y @ x / 50
    ready, lane = mark(device), Lane(Streams(), device)
    host = torch.empty(x.shape, pin_memory=True)
    with lane.after(ready):
        assert torch.cuda.current_stream(device) != torch.cuda.default_stream(device)
        lane.download(y * 2, host, 0)
        torch.full_like(y, torch.nan)  # would take the memory of what is copied
    assert torch.equal(host, (y * 2).cpu())


@gpu
def test_an_error_waits_for_what_was_queued() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    host, lane = torch.full((1 << 22,), -1.0).pin_memory(), Lane(Streams(), device)
    with pytest.raises(ValueError, match="wrong"), lane.after(None):
        lane.download(torch.ones(1 << 22, device=device), host, 0)
        raise ValueError("wrong")
    assert bool((host == 1).all())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_hand_over_comes_behind_what_computes_it_and_before_what_reads_it() -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    x = y = torch.randn(2048, 2048, device=first)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            y = y @ x / 50
        found = hand_over(y, second) * 2
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.device == second and torch.equal(found.cpu(), (y * 2).cpu())


@gpu
def test_an_upload_is_the_same_tensor() -> None:
    x = torch.randn(5)
    found = upload(x, torch.device("cuda"))
    assert found.device.type == "cuda" and torch.equal(found.cpu(), x)
    assert upload(found, found.device) is found
