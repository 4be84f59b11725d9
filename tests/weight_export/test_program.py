"""Stacked matrices are taken apart: each is what quantizing it alone gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llvq.artifact import Box
from llvq.checkpoints.specs import dit_specs
from llvq.errors import ArtifactError, CheckpointError
from llvq.formats import nvfp4
from llvq.models.config import ModelConfig
from llvq.sources import DictSource, TensorSpec
from llvq.weight_export.program import ProgramSource, dit_config


def edited(program: Box, **fields: object) -> Box:
    return replace(program, manifest={**program.manifest, **fields})


def test_every_tensor_of_the_denoiser_is_there(program: Box, tiny_config: ModelConfig) -> None:
    source = ProgramSource(program)
    assert source.config == tiny_config.dit
    expected = {n: TensorSpec(torch.bfloat16, s) for n, s in dit_specs(tiny_config.dit).items()}
    assert {name: source.spec(name) for name in source.names()} == expected


def test_weights_are_those_of_the_checkpoint(program: Box, weights: DictSource) -> None:
    source = ProgramSource(program)
    kinds = {True: 0, False: 0}
    for name in source.names():
        original = weights.read(f"dit.{name}").to(torch.bfloat16)
        packed = source.packed(name)
        kinds[packed is not None] += 1
        if packed is None:
            assert torch.equal(source.read(name), original), name
            continue
        alone = nvfp4.quantize(weights.read(f"dit.{name}"), block_rule="four_over_six")
        codes, scales = packed.read_rows(0, original.shape[0])
        assert torch.equal(codes, alone.codes), name
        assert torch.equal(scales.view(torch.uint8), alone.scales.view(torch.uint8)), name
        assert packed.global_scale() == alone.global_scale and packed.global_scale().shape == ()
        part = packed.read_rows(3, 7)[0]
        assert torch.equal(part, codes[3:7])
        values = nvfp4.dequantize(codes, scales, alone.global_scale, torch.bfloat16)
        assert torch.equal(source.read(name), values)
    assert kinds[True] == 20 and "dit.blocks.0.self_attn.q_k_v" in program.manifest["weights"]


def test_a_weight_that_a_pass_has_made_into_something_else(program: Box) -> None:
    table = dict(program.manifest["weights"])
    del table["dit.blocks.1.norm3.weight"]
    with pytest.raises(CheckpointError, match=r"no weight blocks\.1\.norm3\.weight"):
        ProgramSource(edited(program, weights=table))


def test_a_table_that_does_not_fit_the_tensors(program: Box) -> None:
    table = dict(program.manifest["weights"])
    stack = "dit.blocks.0.self_attn.q_k_v"
    for sources in (table[stack]["sources"][:2], [*table[stack]["sources"][:2], "dit.mine.weight"]):
        with pytest.raises(ArtifactError, match=stack):
            ProgramSource(
                edited(program, weights=table | {stack: {**table[stack], "sources": sources}})
            )


@pytest.mark.parametrize("dit", [None, {}, {"dim": 3}, "x"])
def test_a_manifest_without_sizes(program: Box, dit: object) -> None:
    with pytest.raises(ArtifactError, match="no denoiser"):
        dit_config(edited(program, model={"dit": dit}))


def test_more_layers_than_a_file_has_are_not_listed(program: Box) -> None:
    dit = {**program.manifest["model"]["dit"], "num_layers": 10**12}
    with pytest.raises(ArtifactError, match="no denoiser"):
        dit_config(edited(program, model={"dit": dit}))
