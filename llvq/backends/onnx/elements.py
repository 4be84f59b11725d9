"""Element types: torch's name for each, and the number that ONNX writes for it."""

from __future__ import annotations

import torch

FP4 = torch.float4_e2m1fn_x2
"""Two elements share a byte, low nibble first; shapes count elements here."""

ELEMENT_TYPES: dict[torch.dtype, int] = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
    FP4: 23,
}
