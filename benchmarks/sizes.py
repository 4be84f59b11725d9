"""Sizes of the model that is measured: 5B at 704x1280, or what the options say."""

from __future__ import annotations

import argparse
from dataclasses import replace

from llvq.checkpoints.random import tiny_config
from llvq.models.config import LONGLIVE2_5B, WAN22_VAE, ModelConfig


def size_options(parser: argparse.ArgumentParser) -> None:
    """What `model_sizes` reads."""
    add = parser.add_argument
    add("--tiny", action="store_true", help="the tiny model, at its own size")
    add("--height", type=int, default=704)
    add("--width", type=int, default=1280)
    add(
        "--decoder-dim",
        type=int,
        default=WAN22_VAE.dec_dim,
        metavar="N",
        help="of the VAE: 256 as published (default), 128 or 64 as LightVAE pruned to half or a "
        "quarter",
    )


def model_sizes(options: argparse.Namespace) -> ModelConfig:
    """Without a text encoder, since nobody has a prompt for random weights."""
    if options.tiny:
        return replace(tiny_config(), text=None)
    vae = replace(WAN22_VAE, dec_dim=options.decoder_dim)
    return replace(LONGLIVE2_5B.at(options.height, options.width), vae=vae, text=None)
