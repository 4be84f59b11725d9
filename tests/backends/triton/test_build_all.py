"""All kernels are built, for the chip that is named, and one that cannot be built names its op."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends.triton.build import build
from llvq.backends.triton.build_all import build_all
from llvq.backends.triton.collect import Call, Launches
from llvq.backends.triton.launchers import Collector
from llvq.errors import TargetError


@triton.jit
def scaled(x, out, count, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.static_assert(FACTOR < 5, "too large a factor")
    tl.store(out + at, tl.load(x + at, at < count) * FACTOR, at < count)


@triton.jit
def hoarding(x, out, BLOCK: tl.constexpr):
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    at = rows[:, None] * BLOCK + columns[None, :]
    tile = tl.load(x + at)
    tl.store(out + at, tl.dot(tile, tl.trans(tile)).to(tl.bfloat16))


def launches(*factors: int) -> Launches:
    x, collector, found = torch.empty(64, device="meta"), Collector(), Launches()
    for factor in factors:
        collector(scaled, (1,), x, x, 64, FACTOR=factor, BLOCK=64)
        call = Call("rope", "triton", f"rope_{factor}   blocks.0", {"x": x})
        found.note(call, collector.wanted)
    return found


def test_every_kernel_is_built_and_progress_is_told() -> None:
    found, told = launches(1, 2, 3), list[tuple[int, int]]()
    binaries = build_all(found, "sm_90a", lambda done, of: told.append((done, of)))
    assert [b.name for b in binaries] == sorted(wanted.name for wanted in found.kernels)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert {b.chip for b in binaries} == {"sm_90a"}
    by_itself = {wanted.name: build(k, wanted, "sm_90a") for wanted, k in found.kernels.items()}
    assert {b.name: b.cubin for b in binaries} == {n: b.cubin for n, b in by_itself.items()}


def test_a_kernel_that_does_not_compile_names_op_node_and_reason() -> None:
    with pytest.raises(TargetError) as caught:
        build_all(launches(1, 7, 2), "sm_90a")
    text = str(caught.value)
    assert "kernel scaled of llvq.rope cannot be compiled for sm_90a" in text
    assert "rope_7   blocks.0" in text and "CompileTimeAssertionFailure" in text


def test_a_kernel_that_is_too_large_says_so() -> None:
    x: Tensor = torch.empty(256, 256, dtype=torch.bfloat16, device="meta")
    collector, found = Collector(), Launches()
    collector(hoarding, (1,), x, x, BLOCK=256)
    found.note(Call("attention", "triton", "attention_1", {}), collector.wanted)
    with pytest.raises(TargetError, match=r"hoarding of llvq\.attention") as caught:
        build_all(found, "sm_120a")
    assert "bytes of shared memory per block, sm_120a has" in str(caught.value)
