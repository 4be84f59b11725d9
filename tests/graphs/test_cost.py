"""Multiply-accumulates against FLOPs counted by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import llvq.dialect  # noqa: F401
from llvq.calibration import LayerFacts
from llvq.graphs.cost import macs, node_bytes
from llvq.graphs.on_meta import run_on_meta
from llvq.graphs.write import weight
from llvq.passes import PIPELINE, Options, run
from llvq.passes.rules import Context
from llvq.passes.scores_in_fp4 import scores_in_fp4
from llvq.program import Program
from llvq.recipe import BF16, NVFP4, KvRecipe, Recipe


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(4, 6, (3, 3, 3))
        self.linear = torch.nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).permute(0, 2, 3, 4, 1))


def test_convolution_and_linear() -> None:
    module, x = Convolutions(), torch.randn(1, 4, 5, 6, 7)
    gm = torch.export.export(module, (x,), strict=False).module(check_guards=False)
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert 2 * macs(gm) == counter.get_total_flops()


def test_calls_move_what_they_read_and_write_and_views_nothing() -> None:
    """In fp32: a convolution, two views, a linear, the gather of two rows of four."""
    module, x = Convolutions(), torch.randn(1, 4, 5, 6, 7)
    moved = bytes_of(torch.export.export(module, (x,), strict=False).module(check_guards=False))
    conv, linear = 6 * 3 * 4 * 5, 3 * 4 * 5 * 10
    assert moved["aten.conv3d.default"] == 4 * (x.numel() + 6 * 4 * 27 + 6 + conv)
    assert moved["aten.linear.default"] == 4 * (conv + 60 + 10 + linear)
    assert moved["aten.permute.default"] == 0


class Gathering(torch.nn.Module):
    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return x.index_select(0, rows).expand(3, -1, -1) + 1.0


def test_a_gather_reads_what_it_gives_and_an_expanded_tensor_is_read_once() -> None:
    inputs = torch.randn(4, 5), torch.tensor([1, 3])
    moved = bytes_of(torch.export.export(Gathering(), inputs).module(check_guards=False))
    assert moved["aten.index_select.default"] == 2 * 4 * (2 * 5)
    assert moved["aten.add.Tensor"] == 4 * (2 * 5 + 3 * 2 * 5)


def bytes_of(gm: torch.fx.GraphModule) -> dict[str, int]:
    """By op; each is called once. What export adds to check its inputs is left out."""
    for node in list(gm.graph.nodes):
        if node.op == "call_module":
            gm.graph.erase_node(node)
        if node.op == "get_attr" and "val" not in node.meta:
            node.meta["val"] = weight(gm, node.target)
    values = run_on_meta(gm)
    calls = [node for node in gm.graph.nodes if node.op == "call_function"]
    return {str(node.target): node_bytes(node, values) for node in calls}


def test_a_quantized_denoiser_costs_what_the_original_does(program: Program) -> None:
    costs = []
    for recipe in (BF16, NVFP4):
        twin = program.copy()
        run(twin, recipe, PIPELINE, Options(stop_after="cache-attention"))
        costs.append(macs(twin.graph))
    assert costs[0] == costs[1] > 0


def test_a_branch_costs_two_thin_products_fused_or_not(
    program: Program, known_facts: Mapping[str, LayerFacts]
) -> None:
    costs, rank = {}, 4
    for step in ("fuse-linear", "fuse-lowrank"):
        for calibration in ({}, known_facts):
            twin = program.copy()
            run(twin, NVFP4, PIPELINE, Options(stop_after=step), calibration=calibration)
            costs[step, bool(calibration)] = macs(twin.graph)
    x, y = 12 * 64, 12 * 128  # ffn.0 of both layers: 12 tokens from 64 channels to 128
    assert costs["fuse-linear", True] - costs["fuse-linear", False] == 2 * rank * (x + y)
    assert costs["fuse-lowrank", True] == costs["fuse-linear", True]


@pytest.fixture
def known_facts() -> dict[str, LayerFacts]:
    names = [f"dit.blocks.{i}.ffn.0" for i in range(2)]
    return {
        n: LayerFacts(lora_down=f"{n}.lora_down", lora_up=f"{n}.lora_up", rank=4) for n in names
    }


def test_scores_in_fp4_cost_what_attention_over_pages_does(program: Program) -> None:
    recipe, costs = Recipe(kv=KvRecipe(qk="nvfp4")), []
    run(program, recipe, PIPELINE, Options(stop_after="cache-attention"))
    for step in (None, scores_in_fp4):
        if step is not None:
            step(program, Context(recipe))
        moved = sum(bytes_of(program.graph).values())
        costs.append((macs(program.graph), moved))
    assert costs[0] == costs[1]


class Streamed(torch.nn.Module):
    """A frame goes into a ring of five, through a causal convolution that reads three, and up."""

    def __init__(self, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.weight = torch.nn.Parameter(torch.randn(6, 3, 3, 3, 4))
        self.bias = torch.nn.Parameter(torch.randn(6))
        self.up = torch.nn.Parameter(torch.randn(2, 2, 8, 2, 2, 4))

    def forward(self, ring: torch.Tensor, x: torch.Tensor, decoded: torch.Tensor) -> Any:
        llvq = torch.ops.llvq
        llvq.ring_write(ring, x, decoded, 1, 0, 0)
        made = llvq.ring_conv(
            ring, self.weight, self.bias, None, None, None, decoded, 1, 0, 0, 1, self.doubles
        )
        return made, llvq.upsample_conv(
            ring, self.up, self.up.new_zeros(8), None, False, False, decoded, 1, 0, 1
        )


@pytest.mark.parametrize("doubles", [False, True])
def test_convolutions_over_rings_cost_what_they_do_over_frames(doubles: bool) -> None:
    inputs = torch.zeros(5, 7, 9, 4), torch.randn(1, 5, 7, 4), torch.tensor(2)
    gm = torch.export.export(Streamed(doubles), inputs).module(check_guards=False)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv3d(torch.randn(1, 4, 3, 7, 9), torch.randn(6, 4, 3, 3, 3))
        for _ in range(4):  # pixels of each that comes out
            torch.nn.functional.conv2d(torch.randn(1, 4, 6, 8), torch.randn(8, 4, 2, 2))
    assert 2 * macs(gm) == counter.get_total_flops()
    assert bytes_of(gm)["llvq.ring_write.default"] == 4 * 2 * (5 * 7 * 4) + 8  # and `decoded`
    read, weight = 4 * 3 * (7 * 9 * 4), 4 * (6 * 27 * 4 + 6)
    assert bytes_of(gm)["llvq.ring_conv.default"] == read + weight + 4 * (6 * 5 * 7) + 8
