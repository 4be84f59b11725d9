"""Multiply-accumulates against FLOPs counted by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import llvq.dialect  # noqa: F401
from llvq.calibration import LayerFacts
from llvq.graphs.cost import macs
from llvq.passes import PIPELINE, Options, run
from llvq.program import Program
from llvq.recipe import BF16, NVFP4


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
