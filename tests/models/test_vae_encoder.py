"""Sizes, order and causality of the encoder. Its numbers are those of the golden in test_vae.py."""

from __future__ import annotations

import pytest
import torch

from llvq.models.config import VaeConfig
from llvq.models.vae_causal import StartState, TemporalState, slot_names
from llvq.models.vae_encoder import DownStage, Encoder

CONFIG = VaeConfig(dim=4, dec_dim=4, z_dim=3, dim_mult=(1, 2, 2), temporal_downsample=(False, True))


@pytest.mark.parametrize("groups", [1, 3])
def test_latents_of_a_first_and_of_a_later_call(groups: int) -> None:
    encoder, start = Encoder(CONFIG), StartState()
    video = torch.randn(1, 12, 1 + 2 * groups, 8, 12)
    assert encoder(video, start, first=True).shape == (1, 6, 1 + groups, 2, 3)
    later = TemporalState(start.next)
    assert encoder(video[:, :, 1:], later, first=False).shape == (1, 6, groups, 2, 3)
    assert [slot.shape for slot in later.next] == [slot.shape for slot in start.next]


def test_slots_are_named_in_the_order_of_execution() -> None:
    encoder, state = Encoder(CONFIG), StartState()
    encoder(torch.randn(1, 12, 1, 8, 12), state, first=True)
    widths = [encoder.get_submodule(name).in_channels for name in slot_names(encoder)]
    assert widths == [slot.shape[1] for slot in state.next]


def test_the_future_does_not_change_the_past() -> None:
    encoder = Encoder(CONFIG)
    video = torch.randn(1, 12, 5, 8, 12)
    changed = torch.cat([video[:, :, :3], -video[:, :, 3:]], dim=2)
    before, after = (encoder(each, StartState(), first=True) for each in (video, changed))
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2:], after[:, :, 2:])


def test_the_last_stage_adds_its_input() -> None:
    stage = DownStage(4, 4, 1, down=False, time=False)
    x = torch.randn(1, 4, 2, 3, 3)
    expected = stage.downsamples[0](x, StartState()) + x
    assert torch.equal(stage(x, StartState(), first=False), expected)
