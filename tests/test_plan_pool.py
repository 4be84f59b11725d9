"""PyTorch's allocator of device memory: its rules by hand, and itself where there is a GPU."""

from __future__ import annotations

import random

import pytest
import torch

from llvq.plan_pool import MIB, Pool


def test_small_requests_share_a_segment() -> None:
    pool = Pool()
    for _ in range(4096):
        pool.allocate(1)
    assert pool.reserved == 2 * MIB
    pool.allocate(512)
    assert pool.reserved == 4 * MIB


@pytest.mark.parametrize(
    ("nbytes", "reserved"),
    [(1 * MIB, 2), (1 * MIB + 1, 20), (10 * MIB - 512, 20), (10 * MIB, 10), (11 * MIB, 12)],
)
def test_segments_are_as_large_as_they_are(nbytes: int, reserved: int) -> None:
    pool = Pool()
    pool.allocate(nbytes)
    assert pool.reserved == reserved * MIB


def test_the_smallest_block_that_is_free_is_taken() -> None:
    pool = Pool()
    large, small = pool.allocate(40 * MIB), pool.allocate(16 * MIB)
    pool.free(large)
    pool.free(small)
    pool.allocate(15 * MIB)  # of the 16
    pool.allocate(30 * MIB)
    assert pool.reserved == 56 * MIB
    pool.allocate(9 * MIB)  # what is left of the 40
    assert pool.reserved == 56 * MIB
    pool.allocate(9 * MIB)
    assert pool.reserved == 76 * MIB


def test_neighbours_become_one_again() -> None:
    pool = Pool()
    whole = pool.allocate(40 * MIB)
    pool.free(whole)
    parts = [pool.allocate(10 * MIB) for _ in range(4)]
    for place in (0, 2, 1, 3):
        pool.free(parts[place])
    pool.allocate(40 * MIB)
    assert pool.reserved == pool.most == 40 * MIB


def test_what_nothing_lies_in_can_be_given_back() -> None:
    pool = Pool()
    held = pool.allocate(40 * MIB)
    gone = pool.allocate(16 * MIB)
    pool.free(gone)
    pool.trim()
    assert (pool.reserved, pool.most) == (40 * MIB, 56 * MIB)
    pool.free(held)
    pool.trim()
    assert pool.reserved == 0


def test_events_leave_what_is_not_given_back() -> None:
    pool = Pool(rounds=False)
    left = pool.run([(0, 5), (1, 7), (0, None), (2, 1)])
    assert sorted(left) == [1, 2] and (pool.reserved, pool.most) == (8, 12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pytorch_reserves_as_much() -> None:
    chance, pool = random.Random(0), Pool()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    held: list[tuple[torch.Tensor, object]] = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(400):
            if held and chance.random() < 0.45:
                tensor, block = held.pop(chance.randrange(len(held)))
                del tensor
                pool.free(block)  # type: ignore[arg-type]
                continue
            nbytes = int(2 ** chance.uniform(6, 26))
            tensor = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
            held.append((tensor, pool.allocate(nbytes)))
            del tensor
    assert torch.cuda.memory_reserved() - before == pytest.approx(pool.reserved, rel=0.02)
