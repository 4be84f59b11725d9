"""Markers are read: a rotated weight, or one of another format, is not taken for NVFP4."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llvq.checkpoints.packed_markers import check_markers
from llvq.errors import CheckpointError
from llvq.sources import DictSource

PATH = Path("m.safetensors")


def tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def check(*, marker: Tensor | None = None, header: object = None) -> None:
    tensors = {"a.weight": torch.ones(2)} | ({} if marker is None else {"a.comfy_quant": marker})
    metadata = {} if header is None else {"_quantization_metadata": header}
    check_markers(DictSource(tensors), metadata, PATH)


def layers(**marker: object) -> str:
    return json.dumps({"format_version": "1.0", "layers": {"a": marker}})


def test_what_tools_write_for_nvfp4_passes() -> None:
    check()
    check(header="{}")
    check(header=layers(format="nvfp4"))
    check(header=layers(format="w4a16_nvfp4"))
    check(marker=tensor('{"format": "nvfp4", "convrot": false}'), header=layers(format="nvfp4"))


@pytest.mark.parametrize(
    ("marker", "because"),
    [
        ('{"format": "nvfp4", "convrot": true}', "a.comfy_quant says that the weight was rotated"),
        ('{"format": "float8_e4m3fn"}', "a.comfy_quant says format 'float8_e4m3fn', not nvfp4"),
        ("{}", "a.comfy_quant says format None"),
        ("[]", "a.comfy_quant is no JSON object"),
        ("\x00", "a.comfy_quant is not JSON"),
        ("[" * 60000, "a.comfy_quant is not JSON"),
    ],
)
def test_a_marker_that_says_otherwise(marker: str, because: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check(marker=tensor(marker))
    assert because in str(caught.value)


def test_a_header_that_says_otherwise() -> None:
    cases = {
        layers(format="mxfp8"): "_quantization_metadata of a says format 'mxfp8'",
        layers(format="nvfp4", convrot=True): "rotated",
        '{"layers": 3}': "is no object",
        '{"layers": {"a": 3}}': "says format None",
        "{": "is not JSON",
    }
    for header, because in cases.items():
        with pytest.raises(CheckpointError) as caught:
            check(header=header)
        assert because in str(caught.value)


def test_a_marker_that_is_no_text_is_not_read() -> None:
    for wrong in (torch.ones(4), torch.zeros(1 << 17, dtype=torch.uint8)):
        with pytest.raises(CheckpointError) as caught:
            check(marker=wrong)
        assert "expected JSON" in str(caught.value)
