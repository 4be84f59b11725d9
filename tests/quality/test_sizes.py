from __future__ import annotations

from typing import Any

import pytest

from llvq.quality.comparison import Comparison


def test_bytes_are_those_of_the_files(found: Comparison, files: Any) -> None:
    total = found.sizes.total
    assert total.global_scales == 4 * len(found.layers)
    assert total.codes == 8 * total.scales
    on_disk = sum(file.stat().st_size for file in files.program.glob("weights/*"))
    held = total.quantized + found.sizes.unused
    assert held <= on_disk < held + 100_000  # and headers
    before, after = found.sizes.kv
    # 6 tokens of 64 channels: 2 bytes each, or half a byte, a scale per 16 and one of 4 bytes
    assert before / after == pytest.approx(768 / (192 + 24 + 4))
