"""What kernels over rings refuse, whichever they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llvq.backends.triton.ring_conv import ring_conv
from llvq.errors import KernelError, TargetError

FP32 = torch.float32


def test_what_no_kernel_can_read(launch: Any, randn: Any) -> None:
    when = (torch.tensor(0), 1, 0, 0, 1, False)
    weight = randn(8, 3, 3, 3, 12)
    with pytest.raises(KernelError, match="12 channels"):
        ring_conv(launch, randn(3, 5, 5, 12), weight, randn(8), None, None, None, *when)
    with pytest.raises(TargetError, match=r"torch\.float32 frames"):
        args = (randn(3, 5, 5, 12, dtype=FP32), weight.float(), randn(8, dtype=FP32))
        ring_conv(launch, *args, None, None, None, *when)
