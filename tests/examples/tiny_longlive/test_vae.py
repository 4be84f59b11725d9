"""The trained VAE of the repository shows what it was given, also in pieces."""

from __future__ import annotations

import torch

from examples.tiny_longlive.model import TRAINED, read_vae, tiny_longlive
from examples.tiny_longlive.rollout import decode_frames, to_uint8
from examples.tiny_longlive.train_vae import HELD_OUT_SEED, Clips
from llvq.models.vae_causal import StartState
from llvq.quality.metrics import psnr_db


@torch.no_grad()
def test_clips_come_back() -> None:
    vae = read_vae(TRAINED, tiny_longlive()).float()
    video = Clips(2, HELD_OUT_SEED, "cpu").crops(2, 256)
    latents = vae._encode(video, StartState(), first=True)
    assert latents.shape == (2, 48, 4, 16, 16)
    assert 0.5 < float(latents.std()) < 1.5, "normalised, as a denoiser wants them"
    shown = decode_frames(vae, latents.transpose(1, 2), range(13)).transpose(1, 2)
    assert psnr_db(*(to_uint8(x) for x in (video, shown))) > 34
