"""Attention over pages: llvq's op against two runtimes of ONNX, for every window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.formats.kv import KV_FORMATS
from tests.backends.onnx.conftest import error, run_as
from tests.backends.onnx.test_page_formats import (
    CASES,
    HEADS,
    LAYERS,
    SLOTS,
    TOKENS,
    WIDTH,
    chunk,
)

llvq = torch.ops.llvq


def written(name: str) -> list[Tensor]:
    """Pages of two layers, every slot stored by llvq."""
    specs = KV_FORMATS[name].specs(LAYERS + 1, SLOTS, TOKENS, HEADS, WIDTH, torch.float32)
    pages = [torch.zeros(shape).to(dtype) for _, dtype, shape in specs]
    for layer in range(LAYERS + 1):
        for slot in range(SLOTS):
            seed = 10 * layer + 2 * slot
            llvq.write_page(pages, chunk(seed), chunk(seed + 1), torch.tensor(slot), layer, name)
    return pages


def attending(name: str, count: int, angles: tuple[Tensor, Tensor] | None = None) -> Any:
    """On layer 1: `angles` are closed over, page tensors are inputs."""
    cos, sin = angles or (None, None)

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor, *pages: Tensor) -> Tensor:
        return llvq.paged_attention.default(q, k, v, list(pages), table, cos, sin, None, 1, name)

    by_count: dict[int, Any] = {
        1: lambda q, k, v, t, pages_a: attend(q, k, v, t, pages_a),
        2: lambda q, k, v, t, pages_a, pages_b: attend(q, k, v, t, pages_a, pages_b),
        3: lambda q, k, v, t, pages_a, pages_b, pages_c: attend(
            q, k, v, t, pages_a, pages_b, pages_c
        ),
    }
    return by_count[count]


@pytest.mark.parametrize("window", [[], [1], [2, 0, 1]])
@pytest.mark.parametrize(("name", "dialect"), CASES)
def test_a_window_of_pages(name: str, dialect: str, window: list[int], tmp_path: Path) -> None:
    pages = written(name)
    table = torch.tensor(window, dtype=torch.int64)
    given = (chunk(90), chunk(91), chunk(92), table, *pages)
    function = attending(name, len(pages))
    (found,) = run_as(dialect, tmp_path, function, *given)
    assert error(found, function(*given)) < 1e-6


@pytest.mark.parametrize("window", [[], [2, 0]])
@pytest.mark.parametrize("dialect", ["standard", "portable"])
def test_positions_relative_to_the_window(dialect: str, window: list[int], tmp_path: Path) -> None:
    pages = written("nvfp4")
    turned = torch.rand(TOKENS * (SLOTS + 1), WIDTH // 2) * 6
    table = torch.tensor(window, dtype=torch.int64)
    given = (chunk(90), chunk(91), chunk(92), table, *pages)
    function = attending("nvfp4", len(pages), (turned.cos(), turned.sin()))
    (found,) = run_as(dialect, tmp_path, function, *given)
    assert error(found, function(*given)) < 1e-6
