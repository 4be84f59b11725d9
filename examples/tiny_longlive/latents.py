"""Training samples as latents: the stretches of a layout, drawn and encoded, and their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import torch
from torch import Tensor

from examples.tiny_longlive import data
from examples.tiny_longlive.captions import CUT, caption
from examples.tiny_longlive.layouts import Layout
from examples.tiny_longlive.tokens import encode
from llvq.models.vae import WanVae
from llvq.models.vae_causal import StartState

WARM_UP = 3  # latents encoded and dropped, so that a stretch begins with a filled temporal state
DRAWN = 4  # then three objects in ten tumble and two spin; at random, one in ten each
TUMBLES, SPINS = 2, 1  # what an object's turning counts
FRAMES_PER_CALL = 1536  # pixel frames drawn and encoded at once: 2 GB of them and the encoder's


@dataclass(frozen=True)
class Samples:
    """Clips of one layout: latents [B, n, C, z, h, w]; ids and mask [B, 3, X] of the prompts."""

    layout: Layout
    latents: Tensor
    ids: Tensor
    mask: Tensor


def draw_samples(
    vae: WanVae, layout: Layout, count: int, seed: int, *, text_len: int, frames_per_chunk: int
) -> Samples:
    """`count` clips of `layout`, on the device of `vae`; scenes of `training_scene` by `seed`."""
    random = Random(seed)
    first, second = ([training_scene(random) for _ in range(count)] for _ in "AB")
    size = max(1, FRAMES_PER_CALL // (4 * frames_per_chunk * len(layout.chunks)))
    latents = [
        _encode_layout(vae, layout, first[i : i + size], second[i : i + size], frames_per_chunk)
        for i in range(0, count, size)
    ]
    device = latents[0].device
    prompts = [text for a, b in zip(first, second, strict=True) for text in prompts_of(a, b)]
    ids, mask = (t.to(device).view(count, 3, -1) for t in encode(prompts, text_len))
    return Samples(layout, torch.cat(latents), ids, mask)


def training_scene(random: Random) -> data.Scene:
    """Of several random scenes, the one in which most turns.

    A shape that turns while it travels is learned last: others held in nearly all frames when these
    still melted into balls from one chunk to the next, and when spinning stars did, too.
    """
    return max((data.sample_scene(random) for _ in range(DRAWN)), key=_turning)


def _turning(scene: data.Scene) -> int:
    moves = [thing.move for thing in scene.things]
    return TUMBLES * moves.count("tumbles") + SPINS * moves.count("spins")


def prompts_of(first: data.Scene, second: data.Scene) -> tuple[str, str, str]:
    """Prompts of a video's first shot, of the chunk that cuts, and of the rest of the second."""
    return caption(first), CUT + caption(second), caption(second)


@torch.no_grad()
def _encode_layout(
    vae: WanVae, layout: Layout, first: list, second: list, frames_per_chunk: int
) -> Tensor:
    device = next(vae.parameters()).device
    shots = data.batch(first, device), data.batch(second, device)
    stretches = [
        _encode_stretch(vae, shots, start, count, layout.cut, frames_per_chunk)
        for start, count in stretches_of(layout.chunks)
    ]
    return torch.cat(stretches, dim=1)


def stretches_of(chunks: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first chunk, count) of every run of chunks that follow each other."""
    breaks = [0, *(i for i, (a, b) in enumerate(pairwise(chunks), 1) if b != a + 1), len(chunks)]
    return [(chunks[a], b - a) for a, b in pairwise(breaks)]


def _encode_stretch(
    vae: WanVae,
    shots: tuple[data.Batch, data.Batch],
    start: int,
    count: int,
    cut: int | None,
    frames_per_chunk: int,
) -> Tensor:
    """Latents [B, count, C, z, h, w] of the chunks from `start`."""
    first = start * frames_per_chunk
    warm = max(0, first - WARM_UP)
    end = first + count * frames_per_chunk
    cut_frame = None if cut is None else 4 * cut * frames_per_chunk - 3
    video = _draw_stretch(shots, 4 * warm, 4 * (end - 1) + 1, cut_frame)
    dtype = next(vae.parameters()).dtype
    latent = vae._encode(video.to(dtype), StartState(), first=True).transpose(1, 2)
    return latent[:, first - warm :].unflatten(1, (count, frames_per_chunk)).clone()


def _draw_stretch(
    shots: tuple[data.Batch, data.Batch], start: int, end: int, cut_frame: int | None
) -> Tensor:
    """Pixels [B, 3, end - start, H, W]: the second shot begins at `cut_frame`, at its time 0."""
    border = end if cut_frame is None else min(max(cut_frame, start), end)
    parts = []
    for shot, a, b, zero in ((0, start, border, 0), (1, border, end, cut_frame or 0)):
        if b > a:
            scenes = shots[shot]
            begins = torch.full((len(scenes.scenes),), a - zero, device=scenes.pace_BK.device)
            parts.append(data.paint(scenes, data.frame_times(begins, b - a)))
    return torch.cat(parts, dim=1).transpose(1, 2)
