"""Blocks beside each other: what was paired, what was not, and which blocks are alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llvq.compiler import compile_model
from llvq.models.config import ModelConfig
from llvq.quality.side_by_side import Call, Row, side_by_side
from llvq.recipe import BF16, NVFP4


class Blocks(nn.Module):
    """Two blocks of a linear; the second may have another activation."""

    def __init__(self, *activations: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), a) for a in activations)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def graph(*activations: nn.Module) -> torch.fx.GraphModule:
    exported = torch.export.export(Blocks(*activations), (torch.zeros(2, 4),))
    graph_module = exported.module()
    assert isinstance(graph_module, torch.fx.GraphModule)
    return graph_module


LINEAR = Call("aten.linear", "f32[2,4]", "0")
GELU, RELU = (Call(f"aten.{name}", "f32[2,4]", "1") for name in ("gelu", "relu"))


def test_equal_blocks_are_one_group_of_equal_rows() -> None:
    twice = graph(nn.GELU(), nn.GELU())
    (group,) = side_by_side(twice, twice)
    assert group.blocks == (0, 1)
    assert group.rows == (Row(LINEAR, LINEAR), Row(GELU, GELU))
    assert not any(row.changed for row in group.rows)


def test_a_block_that_changed_alone_stands_alone() -> None:
    before, after = graph(nn.GELU(), nn.GELU()), graph(nn.GELU(), nn.ReLU())
    same, changed = side_by_side(before, after)
    assert (same.blocks, changed.blocks) == ((0,), (1,))
    assert changed.rows == (Row(LINEAR, LINEAR), Row(GELU, RELU, changed=True))


def test_every_block_of_a_model_is_rewritten_alike_and_rules_are_named(
    tiny_config: ModelConfig,
) -> None:
    stages = [compile_model(tiny_config, recipe).stages["denoise"] for recipe in (BF16, NVFP4)]
    (group,) = side_by_side(stages[0].graph, stages[1].graph)
    assert group.blocks == tuple(range(tiny_config.dit.num_layers))
    came = {row.after.op: row.after.rule for row in group.rows if row.changed and row.after}
    assert came["llvq.nvfp4_linear"] == "nvfp4-linear"
    assert came["llvq.norm_modulate_quantize"] == "norm-modulate-quantize"
    gone = {row.before.op for row in group.rows if row.changed and row.before}
    assert "aten.linear" in gone
