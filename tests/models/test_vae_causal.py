"""Oracle: `torch.nn.functional.conv3d` over the whole video, padded with zeros on the left."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.models.vae_causal import CausalConv3d, StartState, TemporalState, slot_names
from llvq.models.vae_layers import ResidualBlock


@pytest.fixture
def video() -> Tensor:
    return torch.randn(2, 3, 8, 5, 4, generator=torch.Generator().manual_seed(0))


def stream(conv: CausalConv3d, video: Tensor, cuts: list[int]) -> Tensor:
    """`video` through `conv` in calls of `cuts` frames."""
    state: TemporalState = StartState()
    out = []
    for part in video.split(cuts, dim=2):
        out.append(conv(part, state))
        state = TemporalState(state.next)
    return torch.cat(out, dim=2)


@pytest.mark.parametrize("cuts", [[8], [1] * 8, [1, 2, 5], [3, 3, 2]])
def test_any_cut_equals_one_zero_padded_convolution(video: Tensor, cuts: list[int]) -> None:
    conv = CausalConv3d(3, 4, (3, 3, 3))
    padded = F.pad(video, (1, 1, 1, 1, 2, 0))
    expected = F.conv3d(padded, conv.weight, conv.bias)
    torch.testing.assert_close(stream(conv, video, cuts), expected)


@pytest.mark.parametrize("cuts", [[8], [4, 4], [2, 6]])
def test_stride_two_continues_from_one_frame(video: Tensor, cuts: list[int]) -> None:
    conv = CausalConv3d(3, 4, (3, 1, 1), time_stride=2)
    expected = F.conv3d(F.pad(video, (0, 0, 0, 0, 1, 0)), conv.weight, conv.bias, stride=(2, 1, 1))
    torch.testing.assert_close(stream(conv, video, cuts), expected)


def test_kernel_one_over_time_takes_no_slot(video: Tensor) -> None:
    state = StartState()
    CausalConv3d(3, 4, (1, 1, 1))(video, state)
    assert state.next == []


def test_no_frames_in_gives_no_frames_and_keeps_the_slot(video: Tensor) -> None:
    state = TemporalState([video[:, :, :2]])
    assert CausalConv3d(3, 4, (3, 3, 3))(video[:, :, :0], state).shape == (2, 4, 0, 5, 4)
    assert torch.equal(state.next[0], video[:, :, :2])


def test_context_replaces_the_slot(video: Tensor) -> None:
    conv = CausalConv3d(3, 4, (3, 1, 1))
    slot, context, rest = torch.full_like(video[:, :, :2], 9.0), video[:, :, :2], video[:, :, 2:]
    assert torch.equal(
        conv(rest, TemporalState([slot]), context), conv(rest, TemporalState([context]))
    )


def test_next_slot_does_not_keep_the_call_alive(video: Tensor) -> None:
    state = StartState()
    state.extend(video, 2)
    assert state.next[0].untyped_storage().nbytes() == video[:, :, :2].numel() * 4


def test_slot_names_are_in_execution_order() -> None:
    assert slot_names(ResidualBlock(3, 4)) == ("residual.2", "residual.6")
