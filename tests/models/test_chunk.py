"""The captured chunk: its inputs, rates, states, and the frames that follow from the velocity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llvq.errors import RecipeError
from llvq.models.chunk import RATES, capture_chunk, example_inputs, meta_model
from llvq.models.config import ModelConfig, VaeConfig
from llvq.program import Program

VAE = VaeConfig(
    dim=8, dec_dim=8, z_dim=8, num_res_blocks=1, latent_mean=(0.5,) * 8, latent_std=(2.0,) * 8
)


@pytest.fixture(scope="module")
def with_vae(tiny_config: ModelConfig) -> ModelConfig:
    return replace(tiny_config, vae=VAE, dit=replace(tiny_config.dit, num_layers=1))


@pytest.fixture(scope="module")
def decoding(with_vae: ModelConfig) -> Program:
    return capture_chunk(with_vae)


def test_inputs_are_those_of_the_full_window(tiny_config: ModelConfig) -> None:
    inputs = example_inputs(tiny_config, torch.bfloat16)
    assert inputs["latent"].shape == (1, 2, 8, 4, 6)
    assert inputs["positions"].shape == (2,) and inputs["positions"].dtype == torch.float64
    assert [k.shape for k in inputs["history_k"]] == [(1, 36, 2, 32)] * 2
    assert set(inputs) == set(RATES) - {"sigma", "decode_frames", "decode_state"}


def test_relative_positions_are_of_the_whole_window(tiny_config: ModelConfig) -> None:
    relative = replace(tiny_config, stream=replace(tiny_config.stream, relative_rope=True))
    assert example_inputs(relative, torch.bfloat16)["positions"].shape == (8,)


def test_every_layer_declares_its_cache(program: Program, tiny_config: ModelConfig) -> None:
    inputs = {spec.name for spec in program.inputs}
    assert [state.layer for state in program.kv_states] == [0, 1]
    for state in program.kv_states:
        assert {state.history_k, state.history_v} <= inputs
        assert {state.present_k, state.present_v} <= set(program.outputs)
    assert not program.loop_states and tiny_config.vae is None


def test_decode_states_loop_from_output_to_input(decoding: Program) -> None:
    inputs = {spec.name: spec for spec in decoding.inputs}
    assert inputs["sigma"].rate == inputs["decode_state.0"].rate == "emit"
    assert {"decode.frames", "decode_first.frames"} <= set(decoding.outputs)
    for loop in decoding.loop_states:
        assert loop.input in inputs and loop.output in decoding.outputs
    outputs = [name for name in decoding.outputs if ".state." in name]
    assert sorted(outputs) == sorted(loop.output for loop in decoding.loop_states)


def test_latent_statistics_are_real_and_the_rest_is_meta(with_vae: ModelConfig) -> None:
    model = meta_model(with_vae, torch.bfloat16)
    real = {name for name, t in model.named_buffers() if t.device.type != "meta"}
    assert real == {"vae.latent_mean", "vae.latent_std"}
    assert all(t.device.type == "meta" for t in model.parameters())


def test_constants_travel_with_the_program(decoding: Program) -> None:
    assert decoding.constants["vae.latent_std"].flatten().tolist() == [2.0] * 8


@pytest.mark.parametrize("latents", [0, -1, 3])
def test_a_decode_call_takes_a_whole_part_of_a_chunk(
    tiny_config: ModelConfig, latents: int
) -> None:
    with pytest.raises(RecipeError, match="does not divide a chunk") as caught:
        capture_chunk(tiny_config, latents_per_call=latents)
    assert "choose one of 1, 2" in str(caught.value)
