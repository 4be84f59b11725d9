"""Linears with epilogues, compiled at the shapes of the 5B model: FP4 instructions, no spills."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from llvq.backends.triton.build import SHARED_MEMORY
from llvq.backends.triton.epilogue_linears import ON_SM100, ON_SM120
from tests.backends.triton.compiled import compiled, meta
from tests.backends.triton.test_block_scaled_gemm import FP4_INSTRUCTION

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
CHIPS = {"sm_100a": ON_SM100, "sm_103a": ON_SM100, "sm_120a": ON_SM120}


def on_meta(tokens: int, features: int, reduction: int) -> tuple[Any, ...]:
    x = (meta(1, tokens, reduction // 2, dtype=torch.uint8),
         meta(1, tokens, reduction // 16, dtype=FP8), meta(dtype=FP32))  # fmt: skip
    w = (meta(features, reduction // 2, dtype=torch.uint8),
         meta(features * reduction // 16, dtype=FP8), meta(1, dtype=FP32))  # fmt: skip
    return (*x, *w, meta(features), [], BF16)


def require_fit(chip: str, op: str, *arguments: Any) -> None:
    made = compiled(chip, getattr(CHIPS[chip], op), *arguments)
    assert [kernel.resources.spilled for kernel in made] == [0] * len(made)
    assert all(kernel.binary.shared <= SHARED_MEMORY[chip] for kernel in made)
    (gemm,) = [kernel for kernel in made if f"{op}_gemm" in kernel.binary.name]
    assert re.search(FP4_INSTRUCTION, gemm.binary.ptx)
    assert "cp.async.bulk.tensor" in gemm.binary.ptx


# Tokens are those of a chunk, in wide tiles, or of a prompt, in narrow ones.
@pytest.mark.parametrize(
    ("chip", "op", "tokens", "approximate"),
    [
        ("sm_100a", "gelu_quantize", 7040, "tanh"),
        ("sm_100a", "gelu", 7040, "none"),
        ("sm_100a", "gelu", 512, "tanh"),
        ("sm_103a", "gelu", 7040, "tanh"),
        ("sm_103a", "gelu_quantize", 7040, "tanh"),
        ("sm_120a", "gelu_quantize", 7040, "none"),
        ("sm_120a", "gelu", 7040, "tanh"),
    ],
)
def test_a_gelu_spills_nothing(chip: str, op: str, tokens: int, approximate: str) -> None:
    features = 14336 if tokens == 7040 else 3072
    given, smooth = on_meta(tokens, features, 3072), meta(features)
    static = (meta(dtype=FP32),) if op == "gelu_quantize" else ()
    require_fit(chip, op, *given, approximate, "four_over_six", *static, smooth)


@pytest.mark.parametrize(
    ("chip", "tokens", "kind"),
    [("sm_100a", 7040, BF16), ("sm_100a", 512, FP32), ("sm_103a", 7040, FP32),
     ("sm_120a", 7040, FP32)],
)  # fmt: skip
def test_a_gated_residual_spills_nothing(chip: str, tokens: int, kind: torch.dtype) -> None:
    given, x = on_meta(tokens, 3072, 14336), meta(1, tokens, 3072)
    require_fit(chip, "gate_residual", *given, x, meta(1, 8, 3072, dtype=kind))
