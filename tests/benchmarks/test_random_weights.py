"""Random weights: the same for a seed, of sane size, and packed as the compiler packs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_weights import (
    RandomSource,
    carry_out,
    device_weights,
    drawn,
    sources_of,
    weight_specs,
)
from llvq.compiler import Compiled, instantiate, with_constants
from llvq.formats import nvfp4
from llvq.models.config import ModelConfig
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.session import Prompt, Session, schedule_of
from llvq.sources import DictSource
from llvq.weights import materialize

CPU = torch.device("cpu")


def test_the_plan_is_carried_out_as_the_compiler_does(compiled_whole: Compiled) -> None:
    source = sources_of(compiled_whole, CPU, seed=1)
    records = {n: r for n, r in compiled_whole.weights.items() if not n.startswith("text.")}
    made = carry_out(records, source)
    checkpoint, wanted = DictSource(source), {}
    for record in records.values():
        wanted |= materialize(record, checkpoint)
    assert made.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert made[name].dtype == tensor.dtype
        assert torch.equal(made[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_weights_are_of_the_size_that_keeps_activations(tiny_config: ModelConfig) -> None:
    specs = weight_specs(tiny_config, torch.bfloat16)
    one, again, other = (device_weights(specs, CPU, seed) for seed in (1, 1, 2))
    name = "dit.blocks.0.ffn.0.weight"
    assert torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name])
    assert one[name].float().std() == pytest.approx(64**-0.5, rel=0.05)
    assert one["dit.blocks.0.norm3.weight"].float().mean() == pytest.approx(1, abs=0.1)
    assert all(tensor.isfinite().all() for tensor in one.values())


@pytest.fixture
def source(compiled_whole: Compiled) -> RandomSource:
    specs = weight_specs(compiled_whole.config, torch.bfloat16)
    return RandomSource(specs, compiled_whole.constants, seed=4)


def test_packed_weights_decode_to_the_deviation_of_plain_ones(source: RandomSource) -> None:
    name = "dit.blocks.1.ffn.2.weight"
    packed = source.packed(name)
    assert packed is not None
    codes, scales = packed.read_rows(0, 64)
    values = nvfp4.dequantize(codes, scales, packed.global_scale(), torch.float32)
    assert values.std() == pytest.approx(128**-0.5, rel=0.05) and values.isfinite().all()
    assert source.packed("dit.head.head.weight") is None
    assert source.packed("dit.blocks.1.norm3.weight") is None


def test_a_video_from_a_random_source_is_finite(
    compiled_nvfp4: Compiled, tiny_config: ModelConfig
) -> None:
    specs = weight_specs(tiny_config, torch.bfloat16)
    source = with_constants(compiled_nvfp4, RandomSource(specs, {}, seed=0))
    model = instantiate(compiled_nvfp4, source)
    prompt = Prompt(torch.randn(1, 5, 32).bfloat16())
    chunks = list(Session(model, [prompt] * 2, latents_only=True))
    assert all(chunk.latents.isfinite().all() for chunk in chunks)
    assert Denoiser(model, schedule_of(model.facts)).pages


def test_values_are_drawn_around_the_end_of_a_pool() -> None:
    pool = torch.arange(5)
    assert drawn(pool, (2, 4), 3).tolist() == [[3, 4, 0, 1], [2, 3, 4, 0]]
    assert drawn(pool, (), 7).tolist() == 2
