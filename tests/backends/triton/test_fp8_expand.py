"""Kernels of the window: which of the two is launched, and what they compile to.

What they make is held in test_fp8_window.py, through what launches them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.fp8_expand import expand_shared_kernel
from llvq.backends.triton.fp8_scales import History
from llvq.backends.triton.fp8_window import rows_in_fp8, window_in_fp8
from llvq.backends.triton.launchers import Collector
from llvq.formats.kv import KV_FORMATS
from tests.backends.triton.compiled import compiled, meta
from tests.backends.triton.machine_code import read_unwritten


def sized(
    kv_format: str, tokens: int, heads: int, dim: int, pages: int
) -> tuple[Tensor, Tensor, History]:
    specs = KV_FORMATS[kv_format].specs(4, 4, tokens, heads, dim, torch.bfloat16)
    pool = [meta(*shape, dtype=dtype) for _, dtype, shape in specs]
    own = meta(1, tokens, heads, dim)
    return own, own, History(pool, meta(pages, dtype=torch.int64), 3, kv_format)


def at_5b(kv_format: str, pages: int = 3) -> tuple[Tensor, Tensor, History]:
    return sized(kv_format, 7040, 24, 128, pages)


@pytest.mark.parametrize(
    "tokens, shared",
    [(7040, []), (1760, ["transposed"]), (48, ["transposed"]), (10, ["heads", "transposed"])],
)
def test_a_kernel_of_its_own_where_pages_share_a_tile(tokens: int, shared: list[str]) -> None:
    collect = Collector()
    window_in_fp8(collect, *sized("nvfp4", tokens, 8, 128, 2))
    layouts = [
        dict(wanted.constants)["LAYOUT"]
        for wanted, kernel in collect.wanted.items()
        if kernel is expand_shared_kernel
    ]
    assert sorted(layouts) == shared


@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_pages_that_share_a_tile_meet_in_registers(kv_format: str) -> None:
    """ptxas stored registers that it had not written, where each page was stored in the loop."""
    for kernel in compiled("sm_90a", window_in_fp8, *sized(kv_format, 48, 2, 32, 2)):
        assert read_unwritten(kernel.binary.cubin) == [], kernel.binary.name
        assert kernel.resources.spilled == 0


@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_it_compiles_without_spills(kv_format: str) -> None:
    """And enough programs share a multiprocessor to keep memory busy, in whole lines."""
    k, v, history = at_5b(kv_format)
    made = compiled("sm_90a", window_in_fp8, k, v, history)
    made += compiled("sm_90a", rows_in_fp8, k, k, v, history)
    for kernel in made:
        assert kernel.resources.spilled == 0, kernel.binary.name
        assert "expand_shared" not in kernel.binary.entry, "pages are whole tiles here"
        if kernel.binary.entry == "expand_kernel":
            assert kernel.resources.registers <= 64, kernel.binary.name
            assert "st.global.b8" not in kernel.binary.ptx
    assert len({kernel.binary.name for kernel in made}) == 6


@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_rows_of_pages_stay_with_their_threads(kv_format: str) -> None:
    """Nothing goes through shared memory, and a multiprocessor has as many threads as it can."""
    k, v, history = at_5b(kv_format)
    expands = [made for made in compiled("sm_90a", rows_in_fp8, k, k, v, history)
               if made.binary.entry == "expand_kernel"]  # fmt: skip
    assert expands
    for kernel in expands:
        assert "bar.sync" not in kernel.binary.ptx and "st.shared" not in kernel.binary.ptx
        assert kernel.resources.registers <= 32, kernel.binary.name
