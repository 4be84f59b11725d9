"""Oracle: the resampling layers of diffusers' Wan autoencoder, given the same weights."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as oracle
from torch import Tensor

from llvq.models.vae_causal import StartState, TemporalState
from llvq.models.vae_resample import (
    Downsample,
    Upsample,
    average_down,
    depth_to_space,
    duplicate_up,
    space_to_depth,
)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("dim", "out_dim"), [(8, 8), (8, 4), (4, 8)])
def test_duplicate_up(dim: int, out_dim: int, time: bool, first: bool) -> None:
    x = randn(2, dim, 3, 4, 5)
    expected = oracle.DupUp3D(dim, out_dim, 2 if time else 1, 2)(x, first_chunk=first)
    assert torch.equal(duplicate_up(x, out_dim, time=time, first=first), expected)


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("out_dim", [4, 8])
def test_average_down(out_dim: int, frames: int, time: bool, space: bool) -> None:
    x = randn(2, 8, frames, 4, 6)
    factors = (2 if time else 1, 2 if space else 1)
    expected = oracle.AvgDown3D(8, out_dim, *factors)(x)
    assert torch.equal(average_down(x, out_dim, time=time, space=space), expected)


def test_pixels_to_depth_and_back() -> None:
    video = randn(2, 3, 2, 4, 6)
    packed = space_to_depth(video, 2)
    assert torch.equal(packed, oracle.patchify(video, 2))
    assert torch.equal(depth_to_space(packed, 2), video)


def theirs_in_groups(layer: oracle.WanResample, x: Tensor, group: int) -> Tensor:
    """Frame 0 alone, then `group` frames per call, as diffusers drives its layers."""
    cache: list[Tensor | None] = [None]
    parts = [x[:, :, :1], *x[:, :, 1:].split(group, dim=2)]
    return torch.cat([layer(part, cache, [0]) for part in parts], dim=2)


@pytest.mark.parametrize("cuts", [[5], [1, 4], [3, 2], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("time", [False, True])
def test_upsample(time: bool, cuts: list[int]) -> None:
    x = randn(2, 4, 5, 3, 2)
    mode = "upsample3d" if time else "upsample2d"
    ours, theirs = Upsample(4, 4, time=time), oracle.WanResample(4, mode, upsample_out_dim=4)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(stream(ours, x, cuts), theirs_in_groups(theirs, x, 1))


@pytest.mark.parametrize("cuts", [[9], [1, 8], [5, 4], [1, 2, 2, 4]])
@pytest.mark.parametrize("time", [False, True])
def test_downsample(time: bool, cuts: list[int]) -> None:
    x = randn(2, 4, 9, 4, 6)
    mode = "downsample3d" if time else "downsample2d"
    ours, theirs = Downsample(4, time=time), oracle.WanResample(4, mode)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(stream(ours, x, cuts), theirs_in_groups(theirs, x, 2))


def stream(layer: Upsample | Downsample, x: Tensor, cuts: list[int]) -> Tensor:
    """`x` through `layer` in calls of `cuts` frames."""
    state: TemporalState = StartState()
    out = []
    for part in x.split(cuts, dim=2):
        out.append(layer(part, state, first=not out))
        state = TemporalState(state.next)
    return torch.cat(out, dim=2)
