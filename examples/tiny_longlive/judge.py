"""Does a video of tiny-longlive show what was asked for?

    python -m examples.tiny_longlive.judge video.mp4 \\
        --prompt "A large red ball on the left waits, over a gray plain background."
    python -m examples.tiny_longlive.judge video.mp4 --prompt "A ..." --prompt "A ..." --cut 31.5
    python -m examples.tiny_longlive.judge video.mp4 --prompt "A ..." --json > identity.json

Prompts are those that the video was made of, in the grammar of captions.py; several are shots. A
detector without any training looks in every frame for the objects that the shot's prompt names.
Score: of all objects and frames that can tell, how many show the object in its colour, its shape
and its size. An object behind another cannot tell. Drift: how the score changes per minute, within
shots, with its standard error. Start: how far an object begins from the named place; up to 20
pixels are left open by a prompt. Jumps: how often an object is elsewhere in the next frame.

Colours that nobody asked for are listed too: an object of the wrong colour is missing, and another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from examples.tiny_longlive.captions import Scene, parse
from examples.tiny_longlive.identity import Identity, identity
from examples.tiny_longlive.model import tiny_longlive
from examples.tiny_longlive.spans import Curve, Drift, Shot, mean_of
from llvq.cli.table import print_json, print_table, stdout
from llvq.errors import LlvqError, SessionError
from llvq.runtime.shots import cues

EXAMPLE = '"A large red ball on the left drifts right, over a gray striped background."'
STRIDE = 4  # frames of a latent; the first latent of a video is one frame


def read_video(path: Path) -> tuple[Tensor, float]:
    """All frames, uint8 [T, H, W, 3], and how many there are in a second. Raises SessionError."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            fps = float(stream.average_rate or 0)
    except (OSError, av.FFmpegError, IndexError) as error:
        raise SessionError(
            "cannot read the video",
            where=str(path),
            because=str(error) if isinstance(error, OSError) else "it has no video in it",
            fix="name an mp4 that `llvq run` wrote",
        ) from error
    if not frames or not fps:
        raise SessionError(
            "the video has no frames",
            where=str(path),
            because="nothing could be decoded",
            fix="name an mp4 that `llvq run` wrote",
        )
    return torch.from_numpy(np.stack(frames)), fps


def shots_of(
    prompts: Sequence[str], cuts: Sequence[float] | None, frames: int, fps: float
) -> list[Shot]:
    """Prompts at their cuts, or spread as `llvq run` spreads them. Raises SessionError."""
    starts = _spread(prompts, frames) if cuts is None else [0, *(round(c * fps) for c in cuts)]
    if len(starts) != len(prompts):
        raise SessionError(
            f"{len(prompts)} prompts and {len(starts) - 1} cuts do not fit together",
            because="every prompt but the first begins at a cut",
            fix="give one --cut less than prompts, or none for the cuts of `llvq run`",
        )
    if sorted({*starts, frames}) != [*starts, frames]:
        raise SessionError(
            f"cuts at {', '.join(f'{cut:g}' for cut in cuts or ())} s are not cuts of this video",
            because=f"they must rise, between 0 and its end at {frames / fps:.2f} s",
            fix="give the seconds at which each prompt but the first begins",
        )
    return [Shot(start, scene_of(text)) for start, text in zip(starts, prompts, strict=True)]


def _spread(prompts: Sequence[str], frames: int) -> list[int]:
    per_chunk = STRIDE * tiny_longlive().stream.frames_per_chunk
    chunks = -(-(frames + STRIDE - 1) // per_chunk)
    script = cues(prompts, chunks, "")
    firsts = [chunk for chunk, cue in enumerate(script) if chunk == 0 or cue.scene_cut]
    return [max(0, chunk * per_chunk - (STRIDE - 1)) for chunk in firsts]


def scene_of(text: str) -> Scene:
    """What a prompt asks for. Raises SessionError."""
    try:
        return parse(text)
    except ValueError as error:
        raise SessionError(
            "the prompt asks for nothing that can be looked for",
            where=repr(text),
            because="it is no sentence of the grammar in examples/tiny_longlive/captions.py",
            fix=f"write it like {EXAMPLE}",
        ) from error


def print_tables(found: Identity) -> None:
    """The objects, shot by shot; then the score second by second, and drift."""
    columns = ("shot", "object", "holds", "colour seen", "shape", "size", "colour difference",
               "agreement", "start px", "jumps")  # fmt: skip
    rows = [
        (str(o.shot), o.name, *map(_share, (o.holds, o.present, o.shape, o.size)),
         _number(mean_of(o.colour), 1), _number(mean_of(o.agreement), 2),
         _number(o.start_error, 0), str(o.jumps))
        for o in found.objects
    ]  # fmt: skip
    print_table("Objects that were asked for", columns, rows, left=2)
    for colour, curve in found.others.items():
        stdout().print(f"nobody asked for {colour}: in {_share(curve)} of the frames", markup=False)
    scores = " ".join("-" if value is None else f"{100 * value:.0f}" for value in found.score)
    stdout().print(f"\nscore by second, %: {scores}", markup=False, soft_wrap=True)
    stdout().print(f"score {_number(found.mean, 3)}; per minute: {_drifts(found)}", markup=False)


def _drifts(found: Identity) -> str:
    names = {"score": "score", "colour": "colour difference", "agreement": "agreement"}
    return ", ".join(f"{name} {_drift(found.drift[key])}" for key, name in names.items())


def _drift(drift: Drift) -> str:
    if drift.per_minute is None or drift.standard_error is None:
        return "unknown"
    return f"{drift.per_minute:+.3f} +-{drift.standard_error:.3f}"


def _share(curve: Curve) -> str:
    middle = mean_of(curve)
    return "-" if middle is None else f"{100 * middle:.0f}%"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.tiny_longlive.judge", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("video", type=Path, help="an mp4 that llvq run wrote; other sizes than 256x256 are resized")
    add("--prompt", action="append", required=True, help="one per shot, in order; repeatable")
    where = "where each prompt but the first begins; repeatable. Default: as llvq run spreads them"
    add("--cut", type=float, action="append", metavar="SECONDS", help=where)
    add("--json", action="store_true", help="all curves, to stdout")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    try:
        frames, fps = read_video(options.video)
        shots = shots_of(options.prompt, options.cut, len(frames), fps)
    except LlvqError as error:
        print(error, file=sys.stderr)
        return 2
    found = identity(frames, shots, fps=fps)
    if options.json:
        print_json({"video": str(options.video), "prompts": options.prompt, **found.to_dict()})
    else:
        print_tables(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
