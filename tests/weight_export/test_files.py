"""Files and folders: whole or not at all, and never in memory as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from llvq.errors import FormatError, OutputError
from llvq.sources import DictSource
from llvq.weight_export import files
from llvq.weight_export.files import placed, write_folder, write_safetensors, write_torch

TENSORS = {
    "a.codes": torch.arange(60, dtype=torch.uint8).reshape(6, 10),
    "a.scales": torch.ones(6, 4).to(torch.float8_e4m3fn),
    "a.global": torch.tensor(0.5),
    "b": torch.randn(3, 5, dtype=torch.bfloat16),
}
SOURCE = DictSource(TENSORS)


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def same(found: torch.Tensor, name: str) -> bool:
    wanted = TENSORS[name]
    return found.dtype == wanted.dtype and torch.equal(found.float(), wanted.float())


def test_a_safetensors_file(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with placed(tmp_path / "m.safetensors") as result:
        write_safetensors(result, SOURCE, {"k": "v"}, lambda *progress: told.append(progress))
    with safe_open(str(tmp_path / "m.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt", "k": "v"}
        assert all(same(file.get_tensor(name), name) for name in TENSORS)
    assert told[-1][0] == told[-1][1] == 60 + 24 + 4 + 30


def test_a_folder_as_diffusers_has_it(tmp_path: Path) -> None:
    for _ in range(2):  # the second time into the folder that is there
        with placed(tmp_path / "m") as result:
            write_folder(result, SOURCE, {"x": [1]}, quiet)
        (tmp_path / "m" / "mine.txt").touch()
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == {"x": [1]}
    names = {"config.json", "diffusion_pytorch_model.safetensors", "mine.txt"}
    assert set(os.listdir(tmp_path / "m")) == names


def test_a_torch_file_has_a_storage_for_each_tensor(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with placed(tmp_path / "m.pt") as result:
        write_torch(result, SOURCE, {"version": 1}, lambda *progress: told.append(progress))
    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    assert loaded["version"] == 1 and list(loaded["generator"]) == list(TENSORS)
    for name, tensor in loaded["generator"].items():
        assert same(tensor, name) and tensor.shape == TENSORS[name].shape
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert told[-1][0] <= told[-1][1] == 2 * (60 + 24 + 4 + 30)
    assert os.listdir(tmp_path) == ["m.pt"]


class Full:
    """A file on a disk that is full."""

    def write(self, data: object) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", ["torch", "nan", "folder"])
def test_what_goes_wrong_leaves_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "m.pt"
    kept.write_text("what was there")
    if kind == "torch":
        real = files._Counted
        monkeypatch.setattr(files, "_Counted", lambda file, told: real(Full(), told))
        with pytest.raises(OutputError, match=r"m\.pt cannot be written") as caught, \
             placed(kept) as result:  # fmt: skip
            write_torch(result, SOURCE, {}, quiet)
        assert caught.value.because == "No space left on device"
    elif kind == "nan":
        broken = DictSource({"a": torch.full((2, 2), torch.nan)})
        with pytest.raises(FormatError, match="tensor a holds a NaN"), placed(kept) as result:
            write_safetensors(result, broken, {}, quiet)
    else:
        with pytest.raises(OutputError), placed(tmp_path / "no" / "m") as result:
            write_folder(result, SOURCE, {}, quiet)
    assert os.listdir(tmp_path) == ["m.pt"] and kept.read_text() == "what was there"
