"""The decode stage of the small model beside PyTorch's VAE, and convolutions read off graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import llvq.dialect  # noqa: F401
from benchmarks import decode, random_box
from benchmarks.convolutions import Convolution, convolution_of
from llvq.backends.base import CPU
from llvq.models.config import ModelConfig

WORDS = ("--repeats", "1", "--op-runs", "1", "--plain-latents", "1")


@pytest.fixture(scope="module")
def written(whole_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written of two boxes that are the same."""
    folder = tmp_path_factory.mktemp("decode")
    box = folder / "small.llvq"
    random_box.write_random_box(box, whole_config, CPU)
    patch = pytest.MonkeyPatch()
    patch.setattr(decode, "model_sizes", lambda _: whole_config)
    assert decode.main([str(box), str(box), *WORDS, "--out", str(folder)]) == 0
    patch.undo()
    return folder


@pytest.fixture(scope="module")
def document(written: Path) -> dict[str, Any]:
    return json.loads((written / "decode.json").read_text())


def test_both_sides_are_in_the_text(written: Path) -> None:
    text = (written / "decode.txt").read_text()
    for words in ("$ python -m benchmarks.decode", "a steady chunk, 8 frames", "inf dB",
                  "PyTorch eager, bf16, 1 latents per call", "cuDNN bf16"):  # fmt: skip
        assert words in text


def test_convolutions_have_a_rate_of_a_library_at_their_shape(document: dict[str, Any]) -> None:
    rows = [row for row in document["boxes"][0]["ops"] if "conv" in row["op"]]
    assert len(rows) > 3
    for row in rows:
        if "->" in row["shape"]:
            assert document["cudnn"][row["shape"]] > 0 and row["flop"] > 0
    assert document["boxes"][1]["psnr"] == float("inf")


def test_a_box_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        decode.arguments([])
    assert "benchmarks.random_box" in capsys.readouterr().err


class Rings(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 3, 3, 3, 4))
        self.up = torch.nn.Parameter(torch.randn(2, 2, 8, 2, 2, 4))
        self.bias = torch.nn.Parameter(torch.randn(8))

    def forward(self, ring: torch.Tensor, decoded: torch.Tensor) -> Any:
        llvq, last = torch.ops.llvq, (decoded, 1, 0, 0, 1, True)
        made = llvq.ring_conv(ring, self.weight, self.bias[:6], None, None, None, *last)
        up = llvq.upsample_conv(ring, self.up, self.bias, None, False, False, decoded, 1, 0, 1)
        return made, up


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(4, 6, (3, 3, 3))
        self.flat = torch.nn.Conv2d(6, 5, (3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(self.conv(x)[0].movedim(1, 0))


RINGS = [Convolution((1, 5, 7), 4, 6, (3, 3, 3)), Convolution((1, 10, 14), 4, 8, (1, 2, 2))]
PLAIN = [Convolution((3, 4, 5), 4, 6, (3, 3, 3)), Convolution((1, 2, 5), 6, 5, (1, 3, 1))]


@pytest.mark.parametrize(
    ("module", "inputs", "wanted"),
    [
        (Rings(), (torch.zeros(3, 7, 9, 4), torch.tensor(2)), RINGS),
        (Plain(), (torch.randn(1, 4, 5, 6, 7),), PLAIN),
    ],
)
def test_convolutions_of_a_graph(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], wanted: list[Convolution]
) -> None:
    nodes = torch.export.export(module, inputs).graph.nodes
    found = [made for node in nodes if (made := convolution_of(node)) is not None]
    assert found == wanted


def test_flop_are_those_that_torch_counts() -> None:
    each = Convolution((3, 4, 5), 4, 6, (3, 2, 1))
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv3d(torch.randn(1, 4, 5, 5, 5), torch.randn(6, 4, 3, 2, 1))
    assert each.flop == counter.get_total_flops() and each.text == "3x4x5 4->6 3x2x1"
    assert each.cudnn_rate(torch.device("cpu"), 1) > 0
