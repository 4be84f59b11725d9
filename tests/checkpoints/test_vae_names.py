"""The oracle is diffusers: its class, and its own conversion of Wan2.1's file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from llvq.checkpoints.specs import vae_specs
from llvq.checkpoints.vae_names import names_in, names_of
from llvq.models.config import WAN21_VAE, WAN22_VAE, VaeConfig

SMALL = {
    "wan2.2": replace(WAN22_VAE, dim=8, dec_dim=16),
    "wan2.2, other blocks": replace(WAN22_VAE, dim=8, dec_dim=8, num_res_blocks=1),
    "wan2.1": replace(WAN21_VAE, dim=8, dec_dim=8),
    "wan2.1, other blocks": replace(WAN21_VAE, dim=8, dec_dim=8, num_res_blocks=3),
}


def oracle(config: VaeConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = AutoencoderKLWan(
            base_dim=config.dim,
            decoder_base_dim=config.dec_dim,
            z_dim=config.z_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.num_res_blocks,
            temperal_downsample=list(config.temporal_downsample),
            is_residual=config.is_residual,
            in_channels=config.pixel_channels,
            out_channels=config.pixel_channels,
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", SMALL)
def test_names_and_shapes_are_those_of_diffusers_class(name: str) -> None:
    config = SMALL[name]
    theirs, table = oracle(config), names_of(config)
    assert {table.to_right(n): s for n, s in vae_specs(config).items()} == theirs
    assert {names_in(set(theirs)).to_left(n): s for n, s in theirs.items()} == vae_specs(config)


def test_wan21_is_converted_as_diffusers_does() -> None:
    """Its conversion knows the published sizes of Wan2.1 only."""
    for name in vae_specs(WAN21_VAE):
        assert list(convert_wan_vae_to_diffusers({name: 0})) == [names_of(WAN21_VAE).to_right(name)]


def test_names_of_nobody_give_a_table_all_the_same() -> None:
    table = names_in({"x", "decoder.up_blocks.0.resnets.0.conv1.weight"})
    assert table.to_left("decoder.conv_in.bias") == "decoder.conv1.bias"
