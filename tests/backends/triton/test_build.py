"""Binaries for chips that are not here, and what is said of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from llvq.backends.triton.build import SHARED_MEMORY, Binary, build, resources
from llvq.backends.triton.specialize import Specialization, specialize
from llvq.errors import KernelError
from tests.backends.triton.compiled import CHIPS, meta


@triton.jit
def scale_and_add(x, y, out, factor, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    tl.store(out + i, tl.load(x + i, mask=mask) * factor + tl.load(y + i, mask=mask), mask=mask)


@triton.jit
def multiply(a, b, out, SIZE: tl.constexpr):
    i, k = tl.arange(0, SIZE), tl.arange(0, 64)
    acc = tl.zeros([SIZE, SIZE], tl.float32)
    for step in range(64):
        left = tl.load(a + i[:, None] * 4096 + step * 64 + k[None, :])
        acc += tl.dot(left, tl.load(b + i[None, :] * 4096 + step * 64 + k[:, None]))
    tl.store(out + i[:, None] * SIZE + i[None, :], acc)


@triton.jit
def copy_by_descriptor(x, out, rows, BLOCK: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, 64], [64, 1], [BLOCK, 64])
    target = tl.make_tensor_descriptor(out, [rows, 64], [64, 1], [BLOCK, 64])
    row = tl.program_id(0) * BLOCK
    target.store([row, 0], source.load([row, 0]))


def wanted(kernel: Any, *args: Any, stages: int = 2, exact: bool = False, **constants: Any) -> Any:
    return specialize(kernel, args, constants, warps=4, stages=stages, exact=exact)


def scaled(exact: bool) -> Specialization:
    x = meta(1024, dtype=torch.float32)
    return wanted(scale_and_add, x, x, x, 0.5, 1024, exact=exact, BLOCK=1024)


@pytest.mark.parametrize("chip", CHIPS)
def test_a_binary_is_for_its_chip(chip: str) -> None:
    made = build(scale_and_add, scaled(False), chip)
    assert made.name == scaled(False).name and made.entry == "scale_and_add"
    assert made.cubin.startswith(b"\x7fELF") and f".target {chip}" in made.ptx
    assert (made.warps, made.shared, made.scratch) == (4, 0, 0)
    found = resources(made)
    assert found.spilled == 0 and 0 < found.registers < 64


def test_exact_kernels_fuse_no_product_with_a_sum() -> None:
    fused, exact = (build(scale_and_add, scaled(exact), "sm_90a").ptx for exact in (False, True))
    assert "fma.rn.f32" in fused and "fma" not in exact
    assert "mul.rn.f32" in exact and "add.rn.f32" in exact


def parameters(made: Binary) -> list[str]:
    return re.findall(r"\.param \.(\S+) (?:\.ptr \S+ \.align \d+ )?\S+_param_\d+", made.ptx)


def test_a_binary_takes_its_arguments_and_two_pointers() -> None:
    """The calling convention that `runtime.kernels.launch` fills in."""
    made = build(scale_and_add, scaled(False), "sm_90a")
    assert parameters(made) == ["u64", "u64", "u64", "f32", "u32", "u64", "u64"]


@pytest.mark.parametrize("chip", CHIPS)
def test_descriptors_live_in_scratch_memory(chip: str) -> None:
    x = meta(256, 64)
    made = build(copy_by_descriptor, wanted(copy_by_descriptor, x, x, 256, BLOCK=64), chip)
    assert made.scratch == 256 and "cp.async.bulk.tensor" in made.ptx


def test_too_much_shared_memory_is_refused_where_there_is_less() -> None:
    a = meta(128, 4096)
    args = wanted(multiply, a, a, meta(128, 128, dtype=torch.float32), stages=5, SIZE=128)
    assert SHARED_MEMORY["sm_120a"] < build(multiply, args, "sm_90a").shared
    with pytest.raises(KernelError, match="does not fit sm_120a"):
        build(multiply, args, "sm_120a")


def test_an_unknown_chip_is_refused() -> None:
    with pytest.raises(KernelError, match="'sm_80'"):
        build(scale_and_add, scaled(False), "sm_80")
