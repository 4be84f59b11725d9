"""Parity with the reference's frames and latents (goldens), keys, sizes, and capture."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llvq.errors import ContractError
from llvq.models.config import VaeConfig
from llvq.models.vae import WanVae, decode_state_shapes, encode_state_shapes

GOLDENS = Path(os.environ.get("LLVQ_GOLDENS", Path(__file__).parents[1] / "data"))
NAMES = sorted(path.stem for path in GOLDENS.glob("vae*.json"))


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
