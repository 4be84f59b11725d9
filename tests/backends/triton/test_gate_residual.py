"""The gated residual is the reference's, bit for bit, wherever it rounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llvq import dialect
from llvq.backends.triton.gate_residual import gate_residual
from llvq.backends.triton.specialize import Launcher
from tests.backends.triton.compare import same_bytes
from tests.backends.triton.compiled import CHIPS, compiled, meta

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize("kinds", [(BF16, BF16, BF16), (BF16, BF16, FP32), (FP32, FP32, FP32),
                                   (FP32, BF16, FP32), (FP32, FP32, BF16)])  # fmt: skip
@pytest.mark.parametrize(
    ("batch", "groups", "tokens", "width"), [(2, 2, 1, 48), (1, 2, 9, 80), (1, 1, 1, 1040)]
)
def test_gate_residual_is_exact(
    launch: Launcher,
    randn: Any,
    kinds: tuple[torch.dtype, ...],
    batch: int,
    groups: int,
    tokens: int,
    width: int,
) -> None:
    x, y = (randn(batch, groups * tokens, width, dtype=kind) for kind in kinds[:2])
    gate = randn(batch, groups, width, dtype=kinds[2])
    found = gate_residual(launch, x, y, gate)
    assert same_bytes(found, dialect.gate_residual.reference(x, y, gate))
    assert same_bytes(found, gate_residual(launch, x, y, gate))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kind", [BF16, FP32])
def test_gate_residual_compiles(chip: str, kind: torch.dtype) -> None:
    x = meta(1, 7040, 3072)
    (made,) = compiled(chip, gate_residual, x, x, meta(1, 8, 3072, dtype=kind))
    assert made.resources.spilled == 0 and made.resources.registers <= 64
    assert made.binary.shared == 0 and "st.global.v4.b32" in made.binary.ptx
