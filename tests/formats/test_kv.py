"""KV page pools: what is written is what is read, slot by slot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llvq.errors import CacheError
from llvq.formats import nvfp4
from llvq.formats.kv import KV_FORMATS, KvFormat

LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM = 3, 4, 5, 2, 64
NAMES = ("none", "fp8", "nvfp4", "int4", "int2")
RELATIVE_ERROR = {"none": 0.0, "fp8": 0.03, "nvfp4": 0.12, "int4": 0.12, "int2": 0.6}


def make_pool(kind: KvFormat, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    specs = kind.specs(LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM, dtype)
    return tuple(torch.zeros(shape, dtype=page_dtype) for _, page_dtype, shape in specs)


def chunk(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TOKENS, HEADS, HEAD_DIM, generator=generator).mul(scale).bfloat16()


def test_registry() -> None:
    assert tuple(KV_FORMATS) == NAMES
    assert all(kind.name == name for name, kind in KV_FORMATS.items())


@pytest.mark.parametrize("name", NAMES)
def test_reads_back_what_was_written_in_table_order(name: str) -> None:
    kind = KV_FORMATS[name]
    pool = make_pool(kind)
    chunks = [chunk(slot, scale=10.0**slot) for slot in range(SLOTS)]
    for slot, x in enumerate(chunks):
        kind.write(pool, 1, 0, torch.tensor(slot), x)
    table = torch.tensor([2, 0, 3])
    got = kind.read(pool, 1, 0, table, torch.bfloat16)
    assert got.dtype == torch.bfloat16 and got.shape == (3 * TOKENS, HEADS, HEAD_DIM)
    for part, slot in zip(got.float().split(TOKENS), table.tolist(), strict=True):
        x = chunks[slot].float()
        assert (part - x).norm() <= RELATIVE_ERROR[name] * x.norm()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(
    writes=st.lists(
        st.tuples(
            st.integers(0, LAYERS - 1),
            st.integers(0, 1),
            st.integers(0, SLOTS - 1),
            st.integers(0, 1000),
        ),
        max_size=8,
    )
)
def test_slots_layers_and_k_and_v_are_apart(
    name: str, writes: list[tuple[int, int, int, int]]
) -> None:
    """Against a plain dictionary: the last write to a place is what is there."""
    kind = KV_FORMATS[name]
    pool, alone = make_pool(kind), make_pool(kind)
    model: dict[tuple[int, int, int], int] = {}
    for layer, which, slot, seed in writes:
        kind.write(pool, layer, which, torch.tensor(slot, dtype=torch.int32), chunk(seed))
        model[layer, which, slot] = seed
    for (layer, which, slot), seed in model.items():
        kind.write(alone, layer, which, torch.tensor(slot), chunk(seed))
    assert all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(pool, alone, strict=True)
    )


def test_nvfp4_pages_hold_the_bytes_of_the_format() -> None:
    kind = KV_FORMATS["nvfp4"]
    pool = make_pool(kind)
    x = chunk(7)
    kind.write(pool, 2, 1, torch.tensor(3), x)
    expected = nvfp4.quantize(x, block_rule="four_over_six")
    codes, scales, g = (page[2, 1, 3] for page in pool)
    assert torch.equal(codes, expected.codes) and torch.equal(g, expected.global_scale)
    assert torch.equal(scales.view(torch.uint8), expected.scales.view(torch.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_non_finite_values(name: str) -> None:
    kind = KV_FORMATS[name]
    pool = make_pool(kind, torch.float32)
    kind.write(pool, 0, 0, torch.tensor(0), torch.zeros(TOKENS, HEADS, HEAD_DIM))
    spoiled = chunk(1)
    spoiled[0, 0, 0] = torch.nan
    kind.write(pool, 0, 0, torch.tensor(1), spoiled)
    got = kind.read(pool, 0, 0, torch.tensor([0, 1]), torch.float32)
    assert not got[:TOKENS].any()
    assert got[TOKENS, 0, 0].isnan()


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_of_a_slot_holds_and_is_near(name: str) -> None:
    kind = KV_FORMATS[name]
    pool = make_pool(kind)
    for slot in range(SLOTS):
        kind.write(pool, 1, 1, torch.tensor(slot), chunk(slot, scale=-(10.0**slot)))
    table = torch.tensor([3, 0, 2])
    bound = kind.bound(pool, 1, 1, table)
    read = kind.read(pool, 1, 1, table, torch.float32).unflatten(0, (3, TOKENS))
    amax = read.abs().amax((1, 2, 3))
    assert bound.dtype == torch.float32 and bound.shape == (3,)
    # NVFP4 pages follow four-over-six: their global scale leaves 448/256 of headroom.
    assert (bound >= amax * (1 - 1e-6)).all() and (bound <= amax * 1.8).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_of_nothing_and_of_nan(name: str) -> None:
    kind = KV_FORMATS[name]
    pool = make_pool(kind)
    assert kind.bound(pool, 0, 0, torch.tensor([], dtype=torch.int64)).shape == (0,)
    spoiled = chunk(1)
    spoiled[2, 1, 3] = torch.nan
    kind.write(pool, 0, 0, torch.tensor(1), spoiled)
    assert kind.bound(pool, 0, 0, torch.tensor([1])).isnan().all()


def test_bytes_per_chunk() -> None:
    """LongLive-2.0: 8 frames of 880 tokens, 24 heads of 128, 30 layers."""
    sizes = {
        name: kind.bytes_per_chunk(30, 7040, 24, 128, torch.bfloat16)
        for name, kind in KV_FORMATS.items()
    }
    values = 30 * 2 * 7040 * 24 * 128
    assert sizes["none"] == 2 * values
    assert sizes["fp8"] == values + 30 * 2 * 4
    assert sizes["nvfp4"] == values * 9 // 16 + 30 * 2 * 4
    assert sizes["int4"] == values * 9 // 16
    assert sizes["int2"] == values * 5 // 16


@pytest.mark.parametrize("name", NAMES)
def test_packed_says_how_many_values_an_element_holds(name: str) -> None:
    kind = KV_FORMATS[name]
    _, _, shape = kind.specs(LAYERS, SLOTS, TOKENS, HEADS, HEAD_DIM, torch.bfloat16)[0]
    values = LAYERS * 2 * SLOTS * TOKENS * HEADS * HEAD_DIM
    assert torch.Size(shape).numel() * kind.packed == values


def test_head_dim_must_hold_whole_blocks() -> None:
    with pytest.raises(CacheError, match="heads of 40 channels"):
        KV_FORMATS["nvfp4"].specs(1, 1, 1, 1, 40, torch.bfloat16)
    with pytest.raises(CacheError, match="heads of 40 channels"):
        KV_FORMATS["nvfp4"].bytes_per_chunk(1, 1, 1, 40, torch.bfloat16)
