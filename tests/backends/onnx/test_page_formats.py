"""Reading and writing pages: byte for byte what llvq's formats do, in two runtimes of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends.onnx.page_formats import FORMATS, page_format
from llvq.errors import TargetError
from llvq.formats.kv import KV_FORMATS
from tests.backends.onnx.conftest import Array, error, run_as

llvq = torch.ops.llvq
LAYERS, SLOTS, TOKENS, HEADS, WIDTH = 1, 3, 6, 2, 32
CASES = [(name, dialect) for name in FORMATS for dialect in ("standard", "portable")]


def chunk(seed: int, *, tokens: int = TOKENS) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1, tokens, HEADS, WIDTH, generator=random)
    return x * torch.randn(1, tokens, HEADS, 1, generator=random).exp()


def empty(name: str, *, tokens: int = TOKENS) -> list[Tensor]:
    specs = KV_FORMATS[name].specs(LAYERS, SLOTS, tokens, HEADS, WIDTH, torch.float32)
    return [torch.zeros(shape).to(dtype) for _, dtype, shape in specs]


def stored_bytes(page: Tensor) -> Tensor:
    return page.view(torch.uint8) if page.dtype == torch.float8_e4m3fn else page


def test_a_format_without_a_translation_is_refused() -> None:
    assert set(FORMATS) <= set(KV_FORMATS)
    with pytest.raises(TargetError, match="KV pages are int2") as caught:
        page_format("int2")
    assert "nvfp4" in str(caught.value.because) and "[kv]" in str(caught.value.fix)


@pytest.mark.parametrize(("name", "dialect"), CASES)
@pytest.mark.parametrize("tokens", [TOKENS, 7])
def test_a_chunk_is_written_byte_for_byte(
    name: str, dialect: str, tokens: int, tmp_path: Path
) -> None:
    pages = empty(name, tokens=tokens)
    k, v = chunk(0, tokens=tokens), chunk(1, tokens=tokens)
    k[0, 0, 0, :16], v[0, 1] = 0.0, 1e-30  # a block of zeros, and one far below the others
    found = run_written(dialect, tmp_path, name, pages, k, v)
    llvq.write_page(pages, k, v, torch.tensor(1), 0, name)
    for page, part in zip(pages, found, strict=True):
        wanted = stored_bytes(page[:, :, 1])
        if page.dtype.itemsize == 1:
            assert torch.equal(torch.from_numpy(part.copy()), wanted)
        else:
            assert error(part, wanted) < 1e-6


def run_written(
    dialect: str, folder: Path, name: str, pages: list[Tensor], k: Tensor, v: Tensor
) -> list[Array]:
    """`write_page` returns nothing: the outputs are what it stored, one for each page tensor."""

    def store(slot: Tensor, key: Tensor, value: Tensor, *parts: Tensor) -> tuple[()]:
        llvq.write_page.default(list(parts), key, value, slot, 0, name)
        return ()

    by_count: dict[int, Any] = {
        1: lambda s, k, v, pages_a: store(s, k, v, pages_a),
        2: lambda s, k, v, pages_a, pages_b: store(s, k, v, pages_a, pages_b),
        3: lambda s, k, v, pages_a, pages_b, pages_c: store(s, k, v, pages_a, pages_b, pages_c),
    }
    given = [page.clone() for page in pages]
    return run_as(dialect, folder, by_count[len(pages)], torch.tensor(1), k, v, *given)
