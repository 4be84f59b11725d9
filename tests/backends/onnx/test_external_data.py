"""One file for the weights of all models: every byte at its place, a few rows at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llvq.backends.onnx import external_data
from llvq.backends.onnx.external_data import PAGE, layout, weights_read, write
from llvq.backends.onnx.records import Initializer, Value, Weight
from llvq.sources import DictSource, TensorSpec

TENSORS = {
    "codes": torch.randint(0, 255, (300, 40), dtype=torch.uint8),
    "scales": torch.rand(300, 5).to(torch.float8_e4m3fn),
    "bias": torch.randn(7).bfloat16(),
    "g": torch.tensor(0.25),
    "empty": torch.zeros(0, 4),
}


def test_each_weight_is_written_once_at_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "STEP_BYTES", 1000)
    source, seen = DictSource(TENSORS), []
    offsets = layout(TENSORS, source)
    path = tmp_path / external_data.FILE
    write(path, offsets, source, lambda done, total: seen.append((done, total)))
    data = np.fromfile(path, dtype=np.uint8)
    for name, tensor in TENSORS.items():
        start, raw = offsets[name], tensor.flatten().view(torch.uint8).numpy()
        assert start % PAGE == 0
        assert np.array_equal(data[start : start + len(raw)], raw)
    total = sum(tensor.nbytes for tensor in TENSORS.values())
    assert seen[-1] == (total, total) and len(seen) > 12


def test_no_more_than_a_few_rows_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Watched(DictSource):
        largest = 0

        def spec(self, name: str) -> TensorSpec:
            return TensorSpec(TENSORS[name].dtype, tuple(TENSORS[name].shape))

        def read(self, name: str) -> torch.Tensor:
            self.largest = max(self.largest, super().read(name).nbytes)
            return super().read(name)

        def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
            rows = self._tensors[name][start:stop]
            self.largest = max(self.largest, rows.nbytes)
            return rows

    monkeypatch.setattr(external_data, "STEP_BYTES", 1000)
    source = Watched(TENSORS)
    write(tmp_path / "w", layout(["codes"], source), source)
    assert source.largest == 1000


def test_weights_are_found_once_in_order_of_use() -> None:
    def initializer(name: str, start: int = 0) -> Initializer:
        value = Value(f"{name}.{start}", torch.uint8, (1,))
        return Initializer(value, Weight(name, torch.uint8, (1,), start))

    constant = Initializer(Value("c", torch.uint8, (1,)), b"x")
    entries = [initializer("b"), constant, initializer("a"), initializer("b", 1)]
    assert weights_read(entries) == ["b", "a"]
