"""`llvq run`: a box becomes a video."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llvq.cli import options
from llvq.cli.plan import LINKS
from llvq.cli.run_timing import Timing
from llvq.errors import OutputError, SessionError

if TYPE_CHECKING:
    from llvq.runtime.executable import RunFacts, Streamed
    from llvq.runtime.latents import LatentWriter
    from llvq.runtime.session import Session
    from llvq.runtime.timeline import Timeline
    from llvq.runtime.video import VideoWriter

TENSORS = "Tensors instead of prompts"
DEFAULT_SECONDS = 5.0


def run(
    box: Annotated[Path, typer.Argument(help="A box made by `llvq export`.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="One per shot. Repeatable.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help=f"Length of the video. Default: {DEFAULT_SECONDS:g}.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps. Default: as trained.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Begin with this image.")
    ] = None,
    prompt_cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep embeddings of prompts here, and look for them."),
    ] = None,
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory",
            help="Keep weights in the memory of the host; see llvq plan --low-memory.",
        ),
    ] = False,
    decode_device: Annotated[
        str | None,
        typer.Option(metavar="cuda:N", help="Decode on another GPU, beside the denoiser."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what was done when, for ui.perfetto.dev."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Default: STEM.mp4 in this folder.")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
    embeds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="safetensors with prompt_embeds, one row per chunk.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    cut: Annotated[
        list[int] | None,
        typer.Option(
            metavar="CHUNK",
            help="With --embeds: a shot begins here. Repeatable.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="safetensors with noise, and maybe initial_latent.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    latents_only: Annotated[
        bool,
        typer.Option(
            "--latents-only", help="Write latents, decode nothing.", rich_help_panel=TENSORS
        ),
    ] = False,
) -> None:
    """Generate a video from a box. Frames are written as they are decoded.

    Several prompts are several shots of equal length. With --prompt-cache the text encoder is
    loaded only for prompts that are new, and a box without one runs what is cached. Ctrl-C stops
    within a chunk and leaves no half file.

    \b
      llvq run model.llvq --prompt "a red kite over the sea" --seconds 10
      llvq run model.llvq --prompt "a harbour at dawn" --prompt "the same harbour, rain" -o a.mp4
      llvq run model.llvq --prompt "she turns around" --image portrait.png --seed 7
      llvq run model.llvq --prompt "a red kite over the sea" --prompt-cache prompts
      llvq run model.llvq --prompt "a red kite over the sea" --decode-device cuda:1
      llvq run model.llvq --embeds io.safetensors --noise io.safetensors --latents-only
    """
    from llvq.cli.output import check_output
    from llvq.cli.table import note, stderr
    from llvq.runtime.generate import Request, open_session
    from llvq.runtime.timeline import Timeline

    path = out or Path(box.resolve().stem + (".safetensors" if latents_only else ".mp4"))
    _check_request(prompt, seconds, embeds, cut, prompt_cache)
    _check_decodes(decode_device, latents_only=latents_only)
    for made in (path, trace):
        if made is not None:
            check_output(made, force=force, kind="file")
    length = DEFAULT_SECONDS if seconds is None else seconds
    prompts, cuts = tuple(prompt or ()), tuple(cut or ())
    request = Request(
        prompts,
        length,
        seed,
        steps,
        image,
        embeds,
        cuts,
        noise,
        latents_only,
        prompt_cache,
        low_memory,
        decode_device,
    )
    timeline = None if trace is None else Timeline()
    began = time.perf_counter()
    with stderr().status("loading"):
        opened = open_session(box, request, timeline)
    facts = opened.session.facts
    for text in opened.truncated:
        note(f"note: longer than {facts.text_len} tokens, the rest is not read: {text[:60]!r}...")
    for error in opened.embedder.damaged:
        note(f"note: {error.what}, and was encoded again: {error.where}: {error.because}")
    if opened.streamed is not None:
        note(_cost(opened.streamed, facts, steps or facts.steps))
    timing = Timing(setup=time.perf_counter() - began)
    with _traced(timeline, trace), _writer(path, facts, latents_only=latents_only) as writer:
        _generate(opened.session, writer, timing, timeline)
    timing.show(path, writer.frames, facts, latents_only=latents_only, as_json=json)


def _cost(streamed: Streamed, facts: RunFacts, steps: int) -> str:
    """What weights in the memory of the host cost, in a line."""
    decodes = facts.frames_per_chunk // facts.latents_per_decode
    calls = {"denoise": steps, "refresh": 1, "decode": decodes}
    copied = sum(count * streamed.copied.get(name, 0) for name, count in calls.items())
    times = ", ".join(f"{copied / rate:.2f} s on {link}" for link, rate in LINKS.items())
    return (
        f"low memory: {streamed.host / 1e9:.2f} GB of weights stay in the memory of the host, "
        f"{copied / 1e9:.1f} GB are copied per chunk: {times} (estimate), beside what is computed"
    )


def _check_request(
    prompt: list[str] | None,
    seconds: float | None,
    embeds: Path | None,
    cut: list[int] | None,
    prompt_cache: Path | None,
) -> None:
    """Options that exclude each other."""
    if embeds is not None and (prompt or seconds is not None):
        raise SessionError(
            "--embeds was given together with --prompt or --seconds",
            because="embeddings say what every chunk shows, and how many chunks there are",
            fix="leave out one or the other",
        )
    if embeds is not None and prompt_cache is not None:
        raise SessionError(
            "--embeds was given together with --prompt-cache",
            because="embeddings are not looked up",
            fix="leave out --prompt-cache",
        )
    if cut and embeds is None:
        raise SessionError(
            "--cut was given without --embeds",
            because="with prompts, every prompt but the first begins a shot",
            fix="leave out --cut",
        )


def _check_decodes(decode_device: str | None, *, latents_only: bool) -> None:
    if decode_device is not None and latents_only:
        raise SessionError(
            "--decode-device was given together with --latents-only",
            because="nothing is decoded",
            fix="leave out one or the other",
        )


@contextmanager
def _traced(timeline: Timeline | None, path: Path | None) -> Iterator[None]:
    """Write what was done when, however the block ends; its error comes before one of the file."""
    from llvq.cli.table import note

    whole = False
    try:
        yield
        whole = True
    finally:
        if timeline is not None and path is not None:
            try:
                timeline.write(path)
            except OutputError as error:
                if whole:
                    raise
                note(f"note: {error.what}: {error.because}")


def _writer(path: Path, facts: RunFacts, *, latents_only: bool) -> VideoWriter | LatentWriter:
    from llvq.runtime.latents import LatentWriter
    from llvq.runtime.video import VideoWriter

    if latents_only:
        return LatentWriter(path)
    height, width = facts.pixel_hw
    return VideoWriter(path, fps=facts.fps, height=height, width=width)


def _generate(
    session: Session,
    writer: VideoWriter | LatentWriter,
    timing: Timing,
    timeline: Timeline | None,
) -> None:
    """Write what comes, with the speed so far beside the bar."""
    from llvq.cli.table import chunk_progress
    from llvq.runtime.write import write

    began = time.perf_counter()
    with chunk_progress() as bar, closing(write(session, writer, timeline)) as told:
        task = bar.add_task("chunks", total=len(session.script), speed="")
        for written in told:
            timing.generate = written.when - began
            timing.first = timing.generate if timing.first is None else timing.first
            speed = f"{writer.frames} frames, {writer.frames / timing.generate:.2f} FPS"
            bar.update(task, advance=int(written.whole), speed=speed)
