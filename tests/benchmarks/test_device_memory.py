"""Memory of a device around a call."""

from __future__ import annotations

import pytest
import torch

from benchmarks.device_memory import give_back, peak_beyond

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_a_cpu_does_not_tell() -> None:
    assert peak_beyond(lambda: torch.empty(8), torch.device("cpu"), 0) is None
    give_back([torch.device("cpu")])


@ON_GPU
def test_the_peak_is_of_what_a_call_has_beyond_what_was_there() -> None:
    device = torch.device("cuda")
    held = torch.empty(2**20, dtype=torch.uint8, device=device)
    before = torch.cuda.memory_allocated(device)
    assert peak_beyond(lambda: torch.empty_like(held), device, before) == held.nbytes
