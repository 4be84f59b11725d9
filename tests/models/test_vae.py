"""Parity with the reference's frames and latents (goldens), keys, sizes, and capture.

Wan2.2's oracle is the golden of the public reference, Wan2.1's is diffusers' AutoencoderKLWan.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file
from torch import Tensor, nn

from llvq.errors import ContractError
from llvq.models.config import WAN21_VAE, VaeConfig
from llvq.models.vae import WanVae, decode_state_shapes, encode_state_shapes

GOLDENS = Path(os.environ.get("LLVQ_GOLDENS", Path(__file__).parents[1] / "data"))
NAMES = sorted(path.stem for path in GOLDENS.glob("vae*.json"))


TINY21 = replace(
    WAN21_VAE,
    dim=4,
    dec_dim=4,
    z_dim=3,
    latent_mean=(0.5, -0.25, 0.0),
    latent_std=(2.0, 0.5, 1.0),
)


@dataclass(frozen=True)
class Golden:
    vae: WanVae
    weights: dict[str, Tensor]
    io: dict[str, Tensor]


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    sizes = json.loads((GOLDENS / f"{request.param}.json").read_text())
    io = load_file(GOLDENS / f"{request.param}.io.safetensors")
    weights = load_file(GOLDENS / f"{request.param}.weights.safetensors")
    config = VaeConfig(
        dim=sizes["dim"],
        dec_dim=sizes["dec_dim"],
        z_dim=sizes["z_dim"],
        dim_mult=tuple(sizes["dim_mult"]),
        num_res_blocks=sizes["num_res_blocks"],
        temporal_downsample=tuple(sizes["temporal_downsample"]),
        latent_mean=tuple(io["mean"].tolist()),
        latent_std=tuple(io["std"].tolist()),
    )
    vae = WanVae(config)
    vae.load_state_dict({name: value.float() for name, value in weights.items()})
    return Golden(vae.requires_grad_(False), weights, io)


def decode_start(golden: Golden) -> list[Tensor]:
    latent = golden.io["latent"]
    height, width = latent.shape[-2:]
    shapes = decode_state_shapes(golden.vae.config, (height, width), latent.shape[0])
    return [torch.zeros(shape) for shape in shapes]


def encode_start(golden: Golden) -> list[Tensor]:
    video = golden.io["video"]
    height, width = video.shape[-2:]
    shapes = encode_state_shapes(golden.vae.config, (height, width), video.shape[0])
    return [torch.zeros(shape) for shape in shapes]


def assert_parity(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("latents_per_call", [1, 2, 3, 1000])
def test_decode_gives_the_same_frames_however_it_is_cut(
    golden: Golden, latents_per_call: int
) -> None:
    state, frames = decode_start(golden), []
    for latent in golden.io["latent"].split(latents_per_call, dim=2):
        pixels, state = golden.vae.decode(latent, state, first=not frames)
        frames.append(pixels)
    assert_parity(torch.cat(frames, dim=2), golden.io["decoded"])


@pytest.mark.parametrize(("start", "group"), [(1, 4), (1, 8), (5, 8), (1000, 4)])
def test_encode_gives_the_same_latents_however_it_is_cut(
    golden: Golden, start: int, group: int
) -> None:
    video, state, latents = golden.io["video"], encode_start(golden), []
    rest = video[:, :, start:]
    for frames in [video[:, :, :start], *(rest.split(group, dim=2) if rest.shape[2] else ())]:
        latent, state = golden.vae.encode(frames, state, first=not latents)
        latents.append(latent)
    assert_parity(torch.cat(latents, dim=2), golden.io["encoded"])


def test_keys_and_shapes_are_those_of_the_published_file(golden: Golden) -> None:
    ours = {name: value.shape for name, value in golden.vae.state_dict().items()}
    assert ours == {name: value.shape for name, value in golden.weights.items()}


def diffusers_vae(config: VaeConfig) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=config.dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample),
    )


@pytest.fixture(scope="module")
def wan21() -> tuple[WanVae, AutoencoderKLWan]:
    """Ours and diffusers', with the same random weights under the names of `Wan2.1_VAE.pth`."""
    ours, theirs = WanVae(TINY21), diffusers_vae(TINY21)
    generator = torch.Generator().manual_seed(0)
    for name, weight in ours.state_dict().items():
        if not name.endswith("gamma"):
            fan_in = max(math.prod(weight.shape[1:]), 1)
            weight.copy_(torch.randn(weight.shape, generator=generator) * fan_in**-0.5)
    published = {name: weight.clone() for name, weight in ours.state_dict().items()}
    theirs.load_state_dict(convert_wan_vae_to_diffusers(published), strict=True)
    return ours.requires_grad_(False), theirs.requires_grad_(False)


def statistics(config: VaeConfig) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([config.latent_mean, config.latent_std]).view(2, -1, 1, 1, 1)
    return mean, std


@pytest.mark.parametrize("cuts", [[5], [1, 4], [1, 1, 1, 1, 1], [3, 2], [2, 3]], ids=str)
def test_wan21_decodes_as_diffusers_however_it_is_cut(
    wan21: tuple[WanVae, AutoencoderKLWan], cuts: list[int]
) -> None:
    ours, theirs = wan21
    latent = torch.randn(2, 3, 5, 4, 3, generator=torch.Generator().manual_seed(1))
    state = [torch.zeros(shape) for shape in decode_state_shapes(TINY21, (4, 3), 2)]
    frames = []
    for part in latent.split(cuts, dim=2):
        pixels, state = ours.decode(part, state, first=not frames)
        frames.append(pixels)
    mean, std = statistics(TINY21)
    expected = theirs.decode(latent * std + mean).sample
    assert expected.shape == (2, 3, 17, 32, 24)
    # diffusers clamps; most pixels must lie inside for this to mean something.
    assert (expected.abs() < 1).float().mean() > 0.5
    assert_parity(torch.cat(frames, dim=2).clamp(-1, 1), expected)


@pytest.mark.parametrize("cuts", [[17], [1, 16], [1, 4, 4, 4, 4], [9, 8], [5, 12]], ids=str)
def test_wan21_encodes_as_diffusers_however_it_is_cut(
    wan21: tuple[WanVae, AutoencoderKLWan], cuts: list[int]
) -> None:
    ours, theirs = wan21
    video = torch.randn(2, 3, 17, 32, 24, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    state = [torch.zeros(shape) for shape in encode_state_shapes(TINY21, (32, 24), 2)]
    latents = []
    for part in video.split(cuts, dim=2):
        latent, state = ours.encode(part, state, first=not latents)
        latents.append(latent)
    mean, std = statistics(TINY21)
    expected = (theirs.encode(video).latent_dist.mode() - mean) / std
    assert expected.shape == (2, 3, 5, 4, 3)
    assert_parity(torch.cat(latents, dim=2), expected)


def test_wan21_published_size_is_that_of_diffusers_by_default() -> None:
    with torch.device("meta"):
        ours, theirs = WanVae(WAN21_VAE), AutoencoderKLWan()
    converted = convert_wan_vae_to_diffusers(dict(ours.state_dict()))
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert {name: weight.shape for name, weight in converted.items()} == shapes
    assert list(WAN21_VAE.latent_mean) == theirs.config.latents_mean
    assert list(WAN21_VAE.latent_std) == theirs.config.latents_std
    slots = decode_state_shapes(WAN21_VAE, (60, 104))
    assert max(slots, key=math.prod) == (1, 96, 2, 480, 832)


def test_published_size() -> None:
    with torch.device("meta"):
        vae = WanVae(VaeConfig())
    sizes = [sum(p.numel() for p in half.parameters()) for half in (vae.encoder, vae.decoder)]
    assert len(vae.state_dict()) == 196
    assert [round(size / 1e6, 1) for size in sizes] == [149.6, 555.0]


def test_state_of_the_published_size() -> None:
    shapes = decode_state_shapes(VaeConfig(), (44, 80))
    assert len(shapes) == 32
    assert max(shapes, key=math.prod) == (1, 512, 2, 352, 640)
    assert 2 * sum(math.prod(shape) for shape in shapes) == 3_215_872_000  # bf16 bytes
    assert len(encode_state_shapes(VaeConfig(), (704, 1280))) == 24


class Call(nn.Module):
    """One variant of one half, as `torch.export` takes it."""

    def __init__(self, vae: WanVae, verb: str, *, first: bool) -> None:
        super().__init__()
        self.vae, self.verb, self.first = vae, verb, first

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return getattr(self.vae, self.verb)(x, state, first=self.first)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("verb", ["decode", "encode"])
def test_export_is_bitwise_eager(golden: Golden, verb: str, first: bool) -> None:
    start = decode_start(golden) if verb == "decode" else encode_start(golden)
    state = [torch.randn_like(slot) for slot in start]
    x = golden.io["latent"][:, :, :2] if verb == "decode" else golden.io["video"][:, :, :5]
    x = x[:, :, 1:] if verb == "encode" and not first else x
    call = Call(golden.vae, verb, first=first)
    program = torch.export.export(call, (x, state), strict=False)
    assert not program.graph_signature.buffers_to_mutate
    expected, expected_state = call(x, state)
    actual, actual_state = program.module()(x, state)
    assert torch.equal(actual, expected)
    assert all(torch.equal(a, b) for a, b in zip(actual_state, expected_state, strict=True))


@pytest.mark.parametrize("first", [True, False])
def test_the_published_size_is_captured_without_weights(first: bool) -> None:
    config = VaeConfig()
    with torch.device("meta"):
        vae = WanVae(config).to(torch.bfloat16).requires_grad_(False)
        state = [
            torch.empty(s, dtype=torch.bfloat16) for s in decode_state_shapes(config, (44, 80))
        ]
        latent = torch.empty(1, config.z_dim, 8, 44, 80, dtype=torch.bfloat16)
    program = torch.export.export(Call(vae, "decode", first=first), (latent, state), strict=False)
    *_, output = program.graph.nodes
    pixels, *new_state = (value.meta["val"] for value in output.args[0])
    assert pixels.shape == (1, 3, 29 if first else 32, 704, 1280)
    assert [value.shape for value in new_state] == [value.shape for value in state]


def test_a_state_of_another_length_is_refused(golden: Golden) -> None:
    with pytest.raises(ContractError, match="decode got 0 state tensors"):
        golden.vae.decode(golden.io["latent"], [], first=True)


@pytest.mark.parametrize(("frames", "first"), [(4, True), (5, False), (0, False)])
def test_an_incomplete_group_of_frames_is_refused(golden: Golden, frames: int, first: bool) -> None:
    video = golden.io["video"][:, :, :frames]
    with pytest.raises(ContractError, match=f"encode got {frames} frames"):
        golden.vae.encode(video, encode_start(golden), first=first)
