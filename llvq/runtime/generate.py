"""From what a person has (prompts, an image, tensors in files) to what a session takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llvq.artifact import Box
from llvq.errors import SessionError
from llvq.runtime.device import check_decode_device
from llvq.runtime.embedder import ENCODER, Embedder
from llvq.runtime.executable import DECODING, Executable, RunFacts, Streamed
from llvq.runtime.inputs import find_tensor, read_tensor, script_of_embeds
from llvq.runtime.load import executable, executable_on_two, open_runnable
from llvq.runtime.prompts import PromptTokenizer, PromptTokens
from llvq.runtime.session import Prompt, Session, check_seed, schedule_of
from llvq.runtime.shots import Cue, chunks_for, cues
from llvq.runtime.timeline import Timeline
from llvq.runtime.video import read_image

IMAGE_ENCODER = "encode_image"


@dataclass(frozen=True)
class Request:
    """A video that somebody asks for: prompts and seconds, or embeddings (one per chunk).

    `noise`: a safetensors file with `noise`, and `initial_latent` for an image-to-video; else the
    noise comes from `seed`. `cuts`: chunks of the embeddings that begin a shot. `prompt_cache`: a
    folder where embeddings of prompts are kept, and looked for. `low_memory`: weights are copied to
    the device when they are used, and stay in the memory of the host. `decode_device`: another GPU
    that decodes.
    """

    prompts: tuple[str, ...] = ()
    seconds: float = 5.0
    seed: int = 0
    steps: int | None = None
    image: Path | None = None
    embeds: Path | None = None
    cuts: tuple[int, ...] = ()
    noise: Path | None = None
    latents_only: bool = False
    prompt_cache: Path | None = None
    low_memory: bool = False
    decode_device: str | None = None


@dataclass(frozen=True)
class Opened:
    """A session that is ready to be iterated, what embeds further prompts for its `set_prompt`, the
    prompts that were cut off on the way, and the weights that are copied as it runs."""

    session: Session
    embedder: Embedder
    truncated: tuple[str, ...] = ()
    streamed: Streamed | None = None


@dataclass(frozen=True)
class Script:
    """One cue per chunk, and the tokens of every distinct prompt. Holds no embedding yet."""

    cues: tuple[Cue, ...]
    tokens: dict[str, PromptTokens]

    @property
    def truncated(self) -> tuple[str, ...]:
        """Prompts that are longer than the model reads."""
        return tuple(prompt for prompt, tokens in self.tokens.items() if tokens.truncated)


def write_script(
    facts: RunFacts, box_path: str | Path, prompts: Sequence[str], chunks: int
) -> Script:
    """Spread prompts over chunks and tokenize them with the tokenizer of the box.

    Loads no weight. Raises SessionError: no prompt, an empty one, more than chunks, no tokenizer.
    """
    written = cues(prompts, chunks, facts.scene_cut_prefix)
    return Script(tuple(written), tokenize(facts, box_path, [cue.prompt for cue in written]))


def tokenize(
    facts: RunFacts, box_path: str | Path, prompts: Iterable[str]
) -> dict[str, PromptTokens]:
    """The tokens of each distinct prompt. Raises SessionError: an empty prompt, no tokenizer."""
    folder = Path(box_path) / "tokenizer"
    if not folder.is_dir():
        raise SessionError(
            "this box has no tokenizer",
            where=str(box_path),
            because="none was found when the model was quantized",
            fix="quantize again with --tokenizer, or pass embeddings (--embeds)",
        )
    tokenizer = PromptTokenizer(folder, facts.text_len)
    return {prompt: tokenizer.encode(prompt) for prompt in dict.fromkeys(prompts)}


def prepare_prompts(embedder: Embedder, prompts: Sequence[str], chunks: int) -> list[Prompt]:
    """Prompts, one per shot, to what a Session takes: one per chunk. Raises as `embed` does."""
    return embed(embedder, write_script(embedder.facts, embedder.box.path, prompts, chunks))


def embed(embedder: Embedder, script: Script) -> list[Prompt]:
    """One prompt per chunk. Each distinct one is embedded once."""
    embeds = embedder.embed(script.tokens)
    return [Prompt(embeds[cue.prompt], cue.scene_cut) for cue in script.cues]


def encode_image(model: Executable, pixels: Tensor) -> Tensor:
    """`read_image`'s pixels [1, 3, 1, H, W] -> the latent [1, 1, channels, h, w] of frame 0."""
    image = pixels.to(model.device, model.facts.torch_dtype)
    return model.stage(IMAGE_ENCODER)({"image": image})["image_latent"]


def open_session(
    box_path: str | Path, request: Request, timeline: Timeline | None = None
) -> Opened:
    """Check the box and the request, encode what conditions the video, and load the box.

    Whatever can be refused is refused before a weight is loaded. The text encoder is loaded for
    prompts that are not cached alone, and is gone when the rest of the box is loaded. Raises
    ArtifactError, SessionError, CheckpointError (the tokenizer), OutputError (the cache).
    """
    box = open_runnable(box_path)
    if request.decode_device is not None:
        check_decode_device(request.decode_device, box.manifest["target"])
    embedder = Embedder(box, request.prompt_cache, low_memory=request.low_memory)
    facts = embedder.facts
    check_seed(request.seed)
    schedule_of(facts, request.steps)
    script = None if request.embeds else _script(facts, box_path, request)
    given = script_of_embeds(facts, _embeds(request), request.cuts) if request.embeds else []
    height, width = facts.pixel_hw
    if request.image:
        _check_takes_image(box)
    pixels = read_image(request.image, height=height, width=width) if request.image else None
    noise = read_tensor(request.noise, "noise") if request.noise else None
    latent = find_tensor(request.noise, "initial_latent") if request.noise else None
    prompts = embed(embedder, script) if script else given
    embedder.release()
    model = _model(box, embedder.device, request)
    if pixels is not None:
        latent = encode_image(model, pixels)
    session = Session(
        model,
        prompts,
        seed=request.seed,
        steps=request.steps,
        noise=noise,
        image_latent=latent.to(facts.torch_dtype) if latent is not None else None,
        latents_only=request.latents_only,
        timeline=timeline,
    )
    return Opened(session, embedder, script.truncated if script else (), model.streamed)


def _model(box: Box, device: str, request: Request) -> Executable:
    """The stages that the request takes."""
    unused = {
        ENCODER,
        *(() if request.image else (IMAGE_ENCODER,)),
        *(DECODING if request.latents_only else ()),
    }
    stages, low_memory = box.manifest["stages"].keys() - unused, request.low_memory
    if request.decode_device is None:
        return executable(box, device, stages=stages, low_memory=low_memory)
    where = device, request.decode_device
    return executable_on_two(box, *where, stages=stages, low_memory=low_memory)


def _check_takes_image(box: Box) -> None:
    if IMAGE_ENCODER not in box.manifest["stages"]:
        raise SessionError(
            "this model does not begin a video at an image",
            where=str(box.path),
            because="it was trained on text alone, or was quantized without its VAE",
            fix="leave out --image",
        )


def _script(facts: RunFacts, box_path: str | Path, request: Request) -> Script:
    sizes = facts.fps, facts.frames_per_chunk, facts.temporal_stride
    return write_script(facts, box_path, request.prompts, chunks_for(request.seconds, *sizes))


def _embeds(request: Request) -> Tensor:
    assert request.embeds is not None
    return read_tensor(request.embeds, "prompt_embeds")
