"""Sizes, order and causality of the decoder. Its numbers are those of the golden in test_vae.py."""

from __future__ import annotations

import pytest
import torch

from llvq.models.config import VaeConfig
from llvq.models.vae_causal import StartState, TemporalState, slot_names
from llvq.models.vae_decoder import Decoder, UpStage

CONFIG = VaeConfig(dim=4, dec_dim=4, z_dim=3, dim_mult=(1, 2, 2), temporal_downsample=(False, True))


@pytest.mark.parametrize("latents", [1, 3])
def test_frames_of_a_first_and_of_a_later_call(latents: int) -> None:
    decoder, start = Decoder(CONFIG), StartState()
    z = torch.randn(1, 3, latents, 2, 3)
    assert decoder(z, start, first=True).shape == (1, 12, 2 * latents - 1, 8, 12)
    later = TemporalState(start.next)
    assert decoder(z, later, first=False).shape == (1, 12, 2 * latents, 8, 12)
    assert [slot.shape for slot in later.next] == [slot.shape for slot in start.next]


def test_one_slot_per_causal_convolution() -> None:
    state = StartState()
    decoder = Decoder(CONFIG)
    decoder(torch.randn(1, 3, 1, 2, 3), state, first=True)
    # conv1, two middle blocks, three stages of three blocks, one time convolution, head
    assert len(state.next) == len(slot_names(decoder)) == 1 + 4 + 3 * 3 * 2 + 1 + 1


def test_slots_are_named_in_the_order_of_execution() -> None:
    decoder, state = Decoder(CONFIG), StartState()
    decoder(torch.randn(1, 3, 1, 2, 3), state, first=True)
    widths = [decoder.get_submodule(name).in_channels for name in slot_names(decoder)]
    assert widths == [slot.shape[1] for slot in state.next]


def test_the_future_does_not_change_the_past() -> None:
    decoder = Decoder(CONFIG)
    z = torch.randn(1, 3, 3, 2, 3)
    changed = torch.cat([z[:, :, :2], -z[:, :, 2:]], dim=2)
    before, after = (decoder(each, StartState(), first=True) for each in (z, changed))
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3:], after[:, :, 3:])


def test_the_last_stage_has_no_shortcut() -> None:
    stage = UpStage(4, 2, 1, up=None, time=False)
    x = torch.randn(1, 4, 2, 3, 3)
    expected = stage.upsamples[0](x, StartState())
    assert torch.equal(stage(x, StartState(), first=False), expected)
