"""Streaming a weight plan into safetensors files."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from llvq import weights
from llvq.errors import FormatError, OutputError
from llvq.sources import DictSource
from llvq.weights import WeightRecord, materialize
from llvq.weights_writer import write_file, write_shards

GENERATOR = torch.Generator().manual_seed(0)
SOURCE = DictSource(
    {
        "w1": torch.randn(40, 64, generator=GENERATOR).bfloat16(),
        "w2": torch.randn(9, 48, generator=GENERATOR).bfloat16(),
        "bias": torch.randn(9, generator=GENERATOR),
        "one": torch.tensor(2.5),
        "empty": torch.zeros(0, 16),
    }
)
PLAN = (
    WeightRecord("first", "quantize", ("w1", "w1"), block_rule="four_over_six"),
    WeightRecord("second", "quantize", ("w2",), block_rule="max"),
    WeightRecord("bias", "copy", ("bias",), dtype=torch.bfloat16),
    WeightRecord("one", "copy", ("one",)),
    WeightRecord("empty", "copy", ("empty",)),
    WeightRecord("both", "concat", ("w1", "w1")),
)


def load(files: dict[str, str], folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for name, file in files.items():
        with safe_open(folder / file, "pt") as opened:
            tensors[name] = opened.get_tensor(name)
    return tensors


def raw(t: Tensor) -> Tensor:
    return t.reshape(-1).view(torch.uint8)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full after `size` bytes of a file: write() fails as it does on a real one.

    Only around the call that is tested: pytest's own output is a file, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 6000, 1])
@pytest.mark.parametrize("chunk", [1 << 24, 100])
def test_files_hold_the_plan(
    tmp_path: Path, max_shard_bytes: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", chunk)
    files = write_shards(PLAN, SOURCE, tmp_path, max_shard_bytes=max_shard_bytes)
    expected = {k: v for record in PLAN for k, v in materialize(record, SOURCE).items()}
    got = load(files, tmp_path)
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape
        assert torch.equal(raw(got[name]), raw(tensor))
    count = {1 << 30: 1, 6000: 2, 1: 6}[max_shard_bytes]
    names = [f"weights-{i:05d}.safetensors" for i in range(1, count + 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_file_holds_one_part_of_the_model(tmp_path: Path) -> None:
    targets = ("dit.a", "dit.b.c", "text.a", "text.b.c", "vae.a", "text.d")
    plan = [WeightRecord(target, "copy", ("bias",)) for target in targets]
    files = write_shards(plan, SOURCE, tmp_path)
    numbers = [int(name[8:13]) for name in files.values()]
    assert numbers == [1, 1, 2, 2, 3, 4]


def test_bytes_do_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for chunk in (1 << 24, 100):
        monkeypatch.setattr(weights, "CHUNK_ELEMENTS", chunk)
        write_shards(PLAN, SOURCE, tmp_path)
        data = (tmp_path / "weights-00001.safetensors").read_bytes()
        digests.append(hashlib.sha256(data).hexdigest())
        assert int.from_bytes(data[:8], "little") % 8 == 0
    assert digests[0] == digests[1]


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_shards(PLAN, SOURCE, tmp_path, progress=lambda done, total: calls.append((done, total)))
    done = [a for a, _ in calls]
    assert done == sorted(done) and {total for _, total in calls} == {done[-1]}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    refused = pytest.raises(OutputError, match="cannot write the weights")
    with refused as caught, largest_file(4096):
        write_shards(PLAN[1:], SOURCE, tmp_path, max_shard_bytes=2000)
    assert "weights-" in str(caught.value.where)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_shards(PLAN, SOURCE, tmp_path / "absent")


def test_a_bad_weight_leaves_nothing_behind(tmp_path: Path) -> None:
    source = DictSource({"good": torch.ones(2, 16), "bad": torch.full((2, 16), torch.nan)})
    plan = [WeightRecord(n, "quantize", (n,), block_rule="max") for n in ("good", "bad")]
    with pytest.raises(FormatError, match="tensor bad"):
        write_shards(plan, source, tmp_path, max_shard_bytes=1)
    assert list(tmp_path.iterdir()) == []


def test_refuses_two_records_of_one_name_and_unknown_dtypes(tmp_path: Path) -> None:
    twice = [WeightRecord("bias", "copy", ("bias",))] * 2
    with pytest.raises(FormatError, match="two records make weight bias"):
        write_shards(twice, SOURCE, tmp_path)
    source = DictSource({"c": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(FormatError, match="weight c is"):
        write_shards([WeightRecord("c", "copy", ("c",))], source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_file_whose_header_says_something(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    written = sum(write_file(path, PLAN, SOURCE, metadata={"format": "pt", "made by": "a test"}))
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "made by": "a test"}
        expected = {k: v for record in PLAN for k, v in materialize(record, SOURCE).items()}
        assert set(opened.keys()) == expected.keys()
        assert all(torch.equal(raw(opened.get_tensor(n)), raw(t)) for n, t in expected.items())
    assert written == sum(t.nbytes for t in expected.values())
