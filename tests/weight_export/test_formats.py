"""The table of formats: what each tool is told fits the layout it reads."""

from __future__ import annotations

import pytest

from llvq.cli.export import FORMATS
from llvq.weight_export.formats import TOOLS, ToolFormat


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS.keys())
def test_a_format_is_one_layout_that_is_also_read(tool: ToolFormat) -> None:
    assert tool.layout.name in TOOLS
    assert bool(tool.layout.inputs) == tool.with_input_scales
    assert (tool.full == 1536) == (tool.layout.global_is == "amax")


def test_every_format_can_be_typed() -> None:
    assert set(TOOLS) < set(FORMATS)


def test_names_are_those_of_the_tool() -> None:
    name = "blocks.3.self_attn.q.weight"
    assert TOOLS["modelopt"].names(name) == "blocks.3.attn1.to_q.weight"
    assert TOOLS["compressed-tensors"].names("blocks.3.ffn.0.input_scale") == (
        "blocks.3.ffn.net.0.proj.input_scale"
    )
    assert TOOLS["comfyui"].names(name) == TOOLS["lightx2v"].names(name) == name
    assert TOOLS["longlive-4o6"].names(name) == f"model.{name}"
