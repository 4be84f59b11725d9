"""The same video twice: chunk by chunk, from one noise, one script and one seed.

Free-running, each side continues from its own history, so errors may grow: drift. Teacher-forced,
the quantized side begins every chunk with the BF16 latents in its KV cache: what is left is the
error of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from llvq.quality.frames import FrameError, frame_error
from llvq.quality.health import Health, health
from llvq.quality.metrics import Energies, energies
from llvq.quality.vmaf import Vmaf
from llvq.runtime.executable import CompiledStage, Executable
from llvq.runtime.prompts import PromptTokenizer
from llvq.runtime.session import Chunk, Prompt, Session
from llvq.runtime.shots import cues

DEFAULT_PROMPTS = (
    "A red kite flies over a green hill in the morning wind.",
    "A small blue boat sails across a quiet lake at sunset.",
)


@dataclass(frozen=True)
class Take:
    """How to run a video: one prompt per chunk, the seed of its noise, the sampling steps."""

    script: Sequence[Prompt]
    seed: int
    steps: int
    latents_only: bool


@dataclass(frozen=True)
class ChunkError:
    """One chunk against the BF16 run. `frames` is None where none were decoded."""

    index: int
    latents: Energies
    frames: FrameError | None


@dataclass(frozen=True)
class ForcedStage(CompiledStage):
    """A refresh stage that stores the next of `latents`, whatever it is given."""

    latents: Iterator[Tensor]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().__call__({**values, "latent": next(self.latents)})


def make_script(
    executable: Executable, tokenizer: PromptTokenizer, prompts: Sequence[str], chunks: int
) -> list[Prompt]:
    """Encode prompts, one per shot, with the text encoder of `executable`."""
    encode, embeds = executable.stage("encode_text"), dict[str, Tensor]()
    script = []
    for cue in cues(prompts, chunks, executable.facts.scene_cut_prefix):
        if cue.prompt not in embeds:
            tokens = tokenizer.encode(cue.prompt)
            inputs = {
                "ids": tokens.ids.to(executable.device),
                "mask": tokens.mask.to(executable.device),
            }
            embeds[cue.prompt] = encode(inputs)["prompt_embeds"]
        script.append(Prompt(embeds[cue.prompt], cue.scene_cut))
    return script


def run(
    executable: Executable, take: Take, *, done: Callable[[], None], cuda_graphs: bool = False
) -> list[Chunk]:
    """All chunks, on the CPU; `done` is called after each.

    cuda_graphs is for graphs without probes and without a teacher: a replay would leave them out.
    """
    session = Session(
        executable,
        [replace(prompt, embeds=_on(executable, prompt.embeds)) for prompt in take.script],
        seed=take.seed,
        steps=take.steps,
        latents_only=take.latents_only,
        decode_depth=0,
        cuda_graphs=cuda_graphs,
    )
    chunks = []
    for chunk in session:
        frames = None if chunk.frames is None else chunk.frames.cpu()
        chunks.append(Chunk(chunk.index, chunk.latents.cpu(), frames))
        done()
    return chunks


def run_forced(
    executable: Executable, take: Take, teacher: Sequence[Chunk], *, done: Callable[[], None]
) -> list[Chunk]:
    """Latents of all chunks, each begun with the teacher's chunks in the KV cache."""
    dtype = executable.facts.torch_dtype
    latents = (chunk.latents.to(executable.device, dtype) for chunk in teacher)
    refresh = executable.stage("refresh")
    forced = ForcedStage(refresh.name, refresh.graph, refresh.inputs, refresh.outputs, latents)
    stages = {**executable.stages, "refresh": forced}
    return run(replace(executable, stages=stages), replace(take, latents_only=True), done=done)


def chunk_errors(
    reference: Sequence[Chunk], chunks: Sequence[Chunk], vmaf: Vmaf | None = None
) -> list[ChunkError]:
    """Chunk by chunk; frames only where both sides have them."""
    errors = []
    for ours, theirs in zip(reference, chunks, strict=True):
        frames = None
        if ours.frames is not None and theirs.frames is not None:
            frames = frame_error(ours.frames, theirs.frames, vmaf)
        errors.append(ChunkError(ours.index, energies(ours.latents, theirs.latents), frames))
    return errors


def chunk_health(chunks: Sequence[Chunk]) -> list[Health]:
    """Chunk by chunk, those with frames."""
    found: list[Health] = []
    before = None
    for chunk in chunks:
        if chunk.frames is not None:
            found.append(health(chunk.frames, before))
            before = chunk.frames[-1]
    return found


def _on(executable: Executable, embeds: Tensor) -> Tensor:
    return embeds.to(executable.device, executable.facts.torch_dtype)
