"""A script: what each chunk of a video is prompted with, and where a new shot begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llvq.errors import SessionError

MAX_SECONDS = 86_400


@dataclass(frozen=True)
class Cue:
    """The prompt of one chunk. `scene_cut` marks the first chunk of a new shot."""

    prompt: str
    scene_cut: bool


def cues(prompts: Sequence[str], chunks: int, scene_cut_prefix: str) -> list[Cue]:
    """Spread one prompt per shot evenly over `chunks`; earlier shots take what is left over.

    The first chunk of every shot but the first carries the prefix that the model was trained to
    read as a cut. A prompt that brings the prefix itself is left as it is.
    """
    if not prompts:
        raise SessionError(
            "no prompt was given",
            because="every shot needs one",
            fix='pass at least one: --prompt "a red kite"',
        )
    if len(prompts) > chunks:
        raise SessionError(
            f"{len(prompts)} prompts do not fit into {chunks} chunks",
            because="every shot takes at least one chunk",
            fix="ask for a longer video (--seconds) or fewer prompts",
        )
    script = []
    for shot, prompt in enumerate(prompts):
        plain = prompt.removeprefix(scene_cut_prefix) if shot else prompt
        length = chunks // len(prompts) + (shot < chunks % len(prompts))
        first = scene_cut_prefix + plain if shot else plain
        script += [Cue(first, shot > 0)] + [Cue(plain, False)] * (length - 1)
    return script


def spellings(prompt: str, scene_cut_prefix: str) -> tuple[str, ...]:
    """What `cues` may make of a prompt in any video: plain, and with the prefix of a cut."""
    plain = prompt.removeprefix(scene_cut_prefix)
    return tuple(dict.fromkeys((plain, scene_cut_prefix + plain)))


def chunks_for(seconds: float, fps: int, frames_per_chunk: int, temporal_stride: int) -> int:
    """How many chunks hold `seconds` of video, to the nearest frame.

    The first has fewer frames than the others: its first latent is one frame.
    """
    if not 0 < seconds < math.inf:
        raise SessionError(f"{seconds} seconds is not a length", fix="ask for more than 0")
    if seconds > MAX_SECONDS:
        raise SessionError(
            f"{seconds:g} seconds is longer than a day",
            because="the whole script of a video is written before it begins",
            fix=f"ask for {MAX_SECONDS} at most, or call set_prompt on one Session after another",
        )
    frames, per_chunk = round(seconds * fps), frames_per_chunk * temporal_stride
    missing = temporal_stride - 1
    return max(1, -(-(frames + missing) // per_chunk))
