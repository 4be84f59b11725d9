"""On a CPU uploads, downloads and lanes do nothing; on a GPU nobody waits who need not."""

from __future__ import annotations

import pytest
import torch

from llvq.runtime.streams import Lane, download, mark, upload

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_on_a_cpu_a_tensor_is_where_it_is() -> None:
    x = torch.randn(3)
    assert upload(x, CPU) is x and download(x) is x and mark(CPU) is None


def test_on_a_cpu_a_lane_is_the_thread_itself() -> None:
    done = []
    with Lane(CPU).after(mark(CPU)):
        done.append(1)
    assert done == [1]


def test_an_error_leaves_a_lane() -> None:
    with pytest.raises(ValueError, match="wrong"), Lane(CPU).after(None):
        raise ValueError("wrong")


@gpu
def test_a_lane_begins_behind_its_mark_and_ends_with_its_work() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.randn(2048, 2048, device=device)
    y = x
    for _ in range(50):
        y = y @ x / 50
    ready, lane = mark(device), Lane(device)
    with lane.after(ready):
        assert torch.cuda.current_stream(device) != torch.cuda.default_stream(device)
        found = download(y * 2)
    assert torch.equal(found, (y * 2).cpu()) and found.is_pinned()


@gpu
def test_an_upload_is_the_same_tensor() -> None:
    x = torch.randn(5)
    found = upload(x, torch.device("cuda"))
    assert found.device.type == "cuda" and torch.equal(found.cpu(), x)
    assert upload(found, found.device) is found
