"""Oracle: the layers of diffusers' Wan autoencoder, given the same weights."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as oracle
from torch import Tensor, nn

from llvq.models.vae_causal import StartState
from llvq.models.vae_layers import (
    FrameAttention,
    Head,
    Middle,
    ResidualBlock,
    RmsNorm,
    batch_to_frames,
    frames_to_batch,
)


@pytest.fixture
def video() -> Tensor:
    return torch.randn(2, 8, 3, 5, 4, generator=torch.Generator().manual_seed(0))


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)


def share_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Random weights into both; the layers register the same shapes in the same order."""
    randomize(ours)
    pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
    for target, source in pairs:
        assert target.shape == source.shape
        target.data.copy_(source.data)


def test_rms_norm(video: Tensor) -> None:
    ours, theirs = RmsNorm(8), oracle.WanRMS_norm(8, images=False)
    share_weights(ours, theirs)
    torch.testing.assert_close(ours(video), theirs(video))


@pytest.mark.parametrize("out_dim", [8, 6])
def test_residual_block(video: Tensor, out_dim: int) -> None:
    ours, theirs = ResidualBlock(8, out_dim), oracle.WanResidualBlock(8, out_dim)
    share_weights(ours, theirs)
    torch.testing.assert_close(ours(video, StartState()), theirs(video))


def test_frame_attention(video: Tensor) -> None:
    ours, theirs = FrameAttention(8), oracle.WanAttentionBlock(8)
    share_weights(ours, theirs)
    torch.testing.assert_close(ours(video), theirs(video))


def test_middle_is_block_attention_block(video: Tensor) -> None:
    ours = Middle(8)
    randomize(ours)
    theirs = oracle.WanMidBlock(8)
    for target, source in zip(
        (theirs.resnets[0], theirs.attentions[0], theirs.resnets[1]), ours, strict=True
    ):
        for into, value in zip(target.parameters(), source.parameters(), strict=True):
            into.data.copy_(value.data)
    torch.testing.assert_close(ours(video, StartState()), theirs(video))


def test_head_names_and_slot(video: Tensor) -> None:
    head, state = Head(8, 12), StartState()
    assert set(head.state_dict()) == {"0.gamma", "2.weight", "2.bias"}
    assert head(video, state).shape == (2, 12, 3, 5, 4)
    assert len(state.next) == 1


def test_frames_to_batch_and_back(video: Tensor) -> None:
    frames = frames_to_batch(video)
    assert torch.equal(frames[4], video[1, :, 1])
    assert torch.equal(batch_to_frames(frames, 2), video)
