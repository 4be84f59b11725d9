"""The oracle is diffusers: its class, and its own conversion of Wan's files."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from llvq.checkpoints.specs import dit_specs
from llvq.checkpoints.wan_names import to_diffusers, to_original
from llvq.models.config import DitConfig

SMALL = DitConfig(dim=128, ffn_dim=160, num_heads=2, num_layers=2, in_dim=4, out_dim=4, text_dim=32)


def test_names_and_shapes_are_those_of_diffusers_class() -> None:
    with torch.device("meta"):
        oracle = WanTransformer3DModel(
            num_attention_heads=SMALL.num_heads,
            attention_head_dim=SMALL.head_dim,
            in_channels=SMALL.in_dim,
            out_channels=SMALL.out_dim,
            text_dim=SMALL.text_dim,
            ffn_dim=SMALL.ffn_dim,
            num_layers=SMALL.num_layers,
        ).state_dict()
    ours = {to_diffusers(name): shape for name, shape in dit_specs(SMALL).items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in oracle.items()}


def test_all_names_go_both_ways_as_in_diffusers_own_conversion() -> None:
    for name in dit_specs(DitConfig()):
        assert list(convert_wan_transformer_to_diffusers({name: 0})) == [to_diffusers(name)]
        assert to_original(to_diffusers(name) or "") == name


def test_what_is_said_of_a_layer_keeps_its_name() -> None:
    scale = "blocks.3.attn2.to_out.0.input_scale"
    assert to_original(scale) == "blocks.3.cross_attn.o.input_scale"


def test_names_of_other_models_are_none() -> None:
    for name in ("blocks.0.attn2.add_k_proj.weight", "blocks.0.norm1.weight", "x"):
        assert to_original(name) is None and to_diffusers(name) is None
