"""The page on the format against the code: its tables of fields, its examples, its decoder."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

import pytest
import torch

from docs.generate import DOCS
from llvq.artifact import manifest
from llvq.formats import nvfp4
from llvq.graphs import record
from llvq.graphs.values import decode, decode_val
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import RunFacts

PAGE = (DOCS / "artifact-format.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(text: str, header: str) -> list[str]:
    """Every `name` in the first column of the table that begins with `header`."""
    rows = text.split(f"| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`(.+?)`", row.split("|")[1])]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


def test_every_field_of_the_manifest_is_there_and_no_other() -> None:
    assert set(first_column(section("Manifest"), "field")) == set(manifest._FIELDS)


def test_every_entry_of_the_state_is_there_and_no_other() -> None:
    assert set(first_column(section("Manifest"), "entry")) == {f.name for f in fields(RunFacts)}


def test_every_field_of_a_node_is_there_in_order() -> None:
    assert first_column(section("Graphs"), "field") == list(record._FIELDS)


def test_the_example_manifest_has_fields_of_the_format() -> None:
    example = json.loads(blocks("json")[0])
    assert example["format"] == manifest.FORMAT
    assert example.keys() <= manifest._FIELDS.keys()
    for name, value in example.items():
        assert isinstance(value, manifest._FIELDS[name])
    for spec in example["contract"]["denoise"]:
        assert InputSpec.from_dict(spec).name == spec["name"]
    for book in example["passes"][0]["books"]:
        assert book["sites"] == book["hits"] + sum(book["excluded"].values())


def test_the_example_node_is_legal() -> None:
    example = json.loads(blocks("json")[1])
    assert record._record(example).target == "llvq.nvfp4_linear.default"
    assert decode_val(example["val"]).shape == (1, 48, 768)


ENCODINGS = [text for text in first_column(section("Graphs"), "JSON") if ".." not in text]


@pytest.mark.parametrize("text", ENCODINGS)
def test_every_encoding_is_one(text: str) -> None:
    value: Any = json.loads(text)
    if isinstance(value, dict) and "tensor" in value:
        assert decode_val(value).dtype == torch.bfloat16
    else:
        node = torch.fx.Graph().placeholder("name")
        decode(value, nodes={"name": node}, device=torch.device("cpu"))


def test_the_decoder_of_the_page_decodes() -> None:
    scope: dict[str, Any] = {}
    exec(blocks("python")[0], scope)
    generator = torch.Generator().manual_seed(5)
    parts = [
        nvfp4.quantize(torch.randn(rows, 64, generator=generator) * rows) for rows in (3, 5, 2)
    ]
    codes, scales = (torch.cat([getattr(p, name) for p in parts]) for name in ("codes", "scales"))
    scale_S = torch.stack([part.global_scale for part in parts])
    expected = nvfp4.dequantize(codes, scales, scale_S, torch.float32, segments=(3, 5, 2))
    found = scope["decode"](codes.numpy(), scales.float().numpy(), scale_S.numpy(), (3, 5, 2))
    assert torch.equal(torch.from_numpy(found), expected)


def test_the_number_of_the_version() -> None:
    assert PAGE.splitlines()[2].startswith(f"Version {manifest.FORMAT_VERSION}.")
