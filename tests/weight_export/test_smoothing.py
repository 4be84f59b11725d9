"""Factors and branches: out of a program and in again, against ModelOpt's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.artifact import Box
from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.specs import dit_specs
from llvq.checkpoints.wan_names import to_original
from llvq.compiler import instantiate
from llvq.errors import ArtifactError, CheckpointError, RecipeError
from llvq.models.config import ModelConfig
from llvq.recipe import NVFP4
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.sampler import schedule
from llvq.sources import DictSource, JoinedSource
from llvq.weight_export.export import export_weights
from llvq.weight_export.program import ProgramSource
from llvq.weight_export.smoothing import restored_linears, smoothing_of
from tests.weight_export.conftest import Made, facts_about


def quiet(done: int, total: int) -> None:
    pass


def edited(program: Box, table: dict[str, Any]) -> Box:
    return replace(program, manifest={**program.manifest, "weights": table})


def test_every_linear_gets_its_own_factor_and_branch(smoothed: Made, weights: DictSource) -> None:
    """But those behind a norm with a weight: it is the norm that holds their factor."""
    source = ProgramSource(smoothed.program)
    svd = "dit.blocks.0.ffn.0.lora_up" in smoothed.source.names()
    facts = facts_about(weights, "svd" if svd else "awq")
    for name, fact in facts.items():
        inner, kind = name.removeprefix("dit."), name.rpartition(".")[2]
        if kind == "input_scale" or inner.endswith("cross_attn.q.pre_quant_scale"):
            continue
        assert torch.equal(source.read(inner), fact), name
    for index in range(2):
        assert f"blocks.{index}.cross_attn.q.pre_quant_scale" not in source.names()
        factor = facts[f"dit.blocks.{index}.cross_attn.q.pre_quant_scale"].float()
        for part in ("weight", "bias"):
            norm = weights.read(f"dit.blocks.{index}.norm3.{part}").bfloat16().float()
            found = source.read(f"blocks.{index}.norm3.{part}")
            assert torch.equal(found, (norm * factor).bfloat16())
    assert ("dit.blocks.0.self_attn.q_k_v.lora_up" in smoothed.program.manifest["weights"]) == svd
    part = source.read_rows("blocks.0.ffn.2.pre_quant_scale", 3, 7)
    assert torch.equal(part, source.read("blocks.0.ffn.2.pre_quant_scale")[3:7])


def test_out_and_in_and_out_again_is_the_same_file(
    smoothed: Made, make_program: Callable[..., Made], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    export_weights(smoothed.program, "modelopt", first, progress=quiet)
    again = make_program(JoinedSource([("dit.", read_dit(first, num_heads=2).tensors)]))
    export_weights(again.program, "modelopt", second, progress=quiet)
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    # The norm that holds a factor is read as a norm: nothing is rounded a second time.
    for a, b in zip(video(smoothed), video(again), strict=True):
        assert torch.equal(a, b)


def video(made: Made) -> list[Tensor]:
    """x0 of two chunks."""
    stream = made.compiled.config.stream
    denoiser = Denoiser(
        instantiate(made.compiled, made.source), schedule(stream.steps, stream.shift)
    )
    return [
        denoiser.run(i, *inputs, scene_cut=False, image=None).x0
        for i, inputs in enumerate(chunks(getattr(torch, made.compiled.recipe.dtype)))
    ]


def chunks(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(2)
    shapes = ((1, 2, 8, 4, 6), (1, 5, 32))
    made = [[torch.randn(s, generator=random).to(dtype) for s in shapes] for _ in range(2)]
    return [(noise, prompt) for noise, prompt in made]


class FromFile(torch.nn.Module):
    """A linear of ModelOpt's layout, dequantized by ModelOpt and composed as its formulas say."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.t = tensors
        self.packed = dequantized(
            tensors["weight"], tensors["weight_scale"], tensors["weight_scale_2"]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.t["pre_quant_scale"] if "pre_quant_scale" in self.t else x
        y = F.linear(rounded(x, self.t["input_scale"]), self.packed, self.t["bias"])
        if "svdquant_lora_a" in self.t:
            y = y + x @ self.t["svdquant_lora_a"].T @ self.t["svdquant_lora_b"].T
        return y


def dequantized(codes: Tensor, scales: Tensor, g: Tensor) -> Tensor:
    oracle = pytest.importorskip("modelopt.torch.quantization.qtensor").NVFP4QTensor
    packed = oracle((codes.shape[0], codes.shape[1] * 2), torch.float32, codes)
    return packed.dequantize(torch.float32, scale=scales, double_scale=g, block_sizes={-1: 16})


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    oracle = pytest.importorskip("modelopt.torch.quantization.qtensor").NVFP4QTensor
    packed, scales, g = oracle.quantize(x, 16, weights_scaling_factor_2=scale)
    return packed.dequantize(torch.float32, scale=scales, double_scale=g, block_sizes={-1: 16})


def test_the_file_computes_what_the_program_computes(
    smoothed_fp32: Made,
    tiny_config: ModelConfig,
    eager_rollout: Callable[..., Any],
    tmp_path: Path,
) -> None:
    export_weights(smoothed_fp32.program, "modelopt", tmp_path / "m", progress=quiet)
    file = open_tensors(tmp_path / "m")
    tensors = {to_original(name) or name: file.read(name) for name in file.names()}
    packed = {n.removesuffix(".weight_scale_2") for n in tensors if n.endswith(".weight_scale_2")}
    shapes = dit_specs(tiny_config.dit)
    plain = {
        name: torch.zeros(shape) if name.removesuffix(".weight") in packed else tensors[name]
        for name, shape in shapes.items()
    }
    wanted = eager_rollout(tiny_config, plain)
    for layer in packed:
        own = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{layer}.")}
        wanted.model.set_submodule(layer, FromFile(own))
    assert len(packed) == 20
    for i, ((noise, prompt), x0) in enumerate(
        zip(chunks(torch.float32), video(smoothed_fp32), strict=True)
    ):
        reference = wanted.run(i, noise, prompt, scene_cut=False, image=None)
        # 1e-7 where no code moves; another BLAS may move one, which is less than one per cent.
        assert (x0 - reference).norm() < 0.01 * reference.norm()


def test_a_program_without_facts_has_none(program: Box, tiny_config: ModelConfig) -> None:
    assert smoothing_of(program, dit_specs(tiny_config.dit)) == {}
    assert restored_linears(program) == []


def test_a_factor_that_the_program_has_lost(smoothed: Made) -> None:
    table = dict(smoothed.program.manifest["weights"])
    del table["dit.blocks.0.ffn.2.pre_quant_scale"]
    with pytest.raises(CheckpointError, match="what its weights were quantized behind") as caught:
        ProgramSource(edited(smoothed.program, table))
    assert "blocks.0.ffn.2.pre_quant_scale is not in it" in str(caught.value)


def test_factors_of_linears_that_do_not_name_them(smoothed: Made) -> None:
    """As a program has them whose manifest says nothing of facts."""
    table = {
        name: {key: value for key, value in record.items() if key != "facts"}
        for name, record in smoothed.program.manifest["weights"].items()
    }
    with pytest.raises(CheckpointError, match="no packed linear has it"):
        ProgramSource(edited(smoothed.program, table))


@pytest.mark.parametrize(
    "facts", [[3], [{"pre_quant_scale": 3}], [{"rank": "4"}], [{"rank": True}]]
)
def test_facts_that_are_none(smoothed: Made, facts: list[Any]) -> None:
    table = dict(smoothed.program.manifest["weights"])
    table["dit.blocks.0.ffn.2"] = {**table["dit.blocks.0.ffn.2"], "facts": facts}
    with pytest.raises(ArtifactError, match=r"facts about dit\.blocks\.0\.ffn\.2 are none"):
        ProgramSource(edited(smoothed.program, table))


@pytest.mark.parametrize("smoothed", ["svd"], indirect=True)
def test_a_rank_that_is_not_that_of_the_branch(smoothed: Made) -> None:
    table = dict(smoothed.program.manifest["weights"])
    record = table["dit.blocks.0.ffn.2"]
    table["dit.blocks.0.ffn.2"] = {**record, "facts": [{**record["facts"][0], "rank": 9}]}
    with pytest.raises(ArtifactError, match=r"ffn\.2\.lora_down is \[4, 128\]"):
        ProgramSource(edited(smoothed.program, table))


@pytest.mark.parametrize("smoothed", ["awq"], indirect=True)
def test_a_linear_in_bf16_cannot_have_a_factor(
    smoothed: Made, make_program: Callable[..., Made], tmp_path: Path
) -> None:
    """Its factor has the name of a sibling's, and is in the norm: the graph alone tells it."""
    path = tmp_path / "m"
    export_weights(smoothed.program, "modelopt", path, progress=quiet)
    packed = JoinedSource([("dit.", read_dit(path, num_heads=2).tensors)])
    exclude = (*NVFP4.linear.exclude, "*.blocks.0.self_attn.q")
    recipe = replace(NVFP4, linear=replace(NVFP4.linear, exclude=exclude))
    program = make_program(packed, recipe).program
    assert restored_linears(program) == ["blocks.0.self_attn.q"]
    with pytest.raises(RecipeError, match=r"cannot hold blocks\.0\.self_attn\.q in bf16"):
        export_weights(program, "modelopt", tmp_path / "n", progress=quiet)
    assert not (tmp_path / "n").exists()
