"""What tests of kernels need: a launcher that fits the machine, and memory full of NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.launchers import JustInTime
from llvq.backends.triton.specialize import Launcher
from tests.backends.triton.interpreter import Interpreted


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: the GPU if there is one, the interpreter on the CPU if not."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def launch(device: torch.device) -> Launcher:
    return JustInTime(device) if device.type == "cuda" else Interpreted()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What `torch.empty` gives holds NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def randn(device: torch.device) -> Callable[..., Tensor]:
    """Normal numbers on the device, the same ones on every machine, new ones with every call."""
    generator = torch.Generator().manual_seed(17)

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return make
