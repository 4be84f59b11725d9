"""Open a whole video model: denoiser, VAE and text encoder as one configuration and one source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from llvq.calibration import Calibration, calibration_of
from llvq.checkpoints.bundle import Bundle, denoiser_in, find_companions
from llvq.checkpoints.checkpoint import Checkpoint, json_beside, positive_int
from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.lora import Lora, read_loras
from llvq.checkpoints.merged import merge
from llvq.checkpoints.stream import read_stream
from llvq.checkpoints.text import read_text_encoder
from llvq.checkpoints.vae import read_vae
from llvq.errors import CheckpointError
from llvq.models.config import (
    LONGLIVE2_5B,
    DitConfig,
    ModelConfig,
    TextConfig,
    VaeConfig,
    published_for,
)
from llvq.runtime.prompts import PromptTokenizer
from llvq.sources import JoinedSource, TensorSource


@dataclass(frozen=True)
class VideoModel:
    """A checkpoint set. `source` names weights as the captured model does: dit., vae., text.

    `calibration`: what the files say of linears beyond their weights. `loras`: merged into it.
    """

    config: ModelConfig
    source: TensorSource
    calibration: Calibration
    bundle: Bundle
    notes: tuple[str, ...]
    loras: tuple[Lora, ...] = ()


def open_model(
    path: str | PathLike[str],
    *,
    vae: str | PathLike[str] | None = None,
    text_encoder: str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
    num_heads: int | None = None,
    use_ema: bool = False,
    size: tuple[int, int] | None = None,
    layout: str | None = None,
    lora: Sequence[str | PathLike[str]] = (),
    lora_alpha: Sequence[float] = (),
) -> VideoModel:
    """Open a denoiser and what lies beside it, for videos of `size` (height, width).

    What neither `size` nor config.json beside the checkpoint says is that of the published model
    with as many latent channels. `layout`: how packed linears lie in the file, where it leaves that
    open. `lora`: files whose LoRAs are merged into the denoiser, as its weights are read, and
    `lora_alpha` what they do not say. Reads no weight but theirs. Raises CheckpointError.
    """
    path = denoiser_in(Path(path))
    dit = read_dit(path, num_heads=num_heads, use_ema=use_ema, layout=layout)
    loras = read_loras(lora, lora_alpha)
    dit = merge(dit, path, loras)
    channels = dit.config.in_dim
    bundle = find_companions(
        path, channels, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
    )
    published = published_for(channels)
    vae_part = read_vae(bundle.vae) if bundle.vae else None
    text_part = read_text_encoder(bundle.text_encoder) if bundle.text_encoder else None
    _check_fit(dit.config, vae_part, text_part)
    if bundle.tokenizer is not None:
        PromptTokenizer(bundle.tokenizer, dit.config.text_len)  # refuses what is none
    config = ModelConfig(
        dit=dit.config,
        stream=read_stream(bundle.dit, published.stream),
        vae=vae_part.config if vae_part else None,
        text=text_part.config if text_part else None,
    )
    parts = [("dit.", dit.tensors)]
    parts += [("vae.", vae_part.tensors)] if vae_part else []
    parts += [("text.", text_part.tensors)] if text_part else []
    notes = [*bundle.notes, *dit.notes, *_family(bundle.dit, dit.config)]
    notes += [note for part in (vae_part, text_part) if part for note in part.notes]
    height, width = size or _size_beside(bundle.dit, published.pixel_hw)
    source = JoinedSource(parts)
    facts = calibration_of(source)
    return VideoModel(config.at(height, width), source, facts, bundle, tuple(notes), loras)


def _family(path: Path, dit: DitConfig) -> tuple[str, ...]:
    """What is taken over from a published model, where that is not what llvq is made for first."""
    published = published_for(dit.in_dim)
    if published is LONGLIVE2_5B or "stream" in json_beside(path, "config.json"):
        return ()
    stream = published.stream
    return (
        f"{dit.in_dim} latent channels: streamed as Self-Forcing, {stream.frames_per_chunk} latent "
        f"frames per chunk in a window of {stream.window_frames}, re-noised at "
        f"{', '.join(map(str, stream.timesteps))}, {stream.fps} fps "
        "(`stream` in config.json says otherwise)",
    )


def _size_beside(path: Path, default: tuple[int, int]) -> tuple[int, int]:
    document = json_beside(path, "config.json")
    height, width = (
        document.get(key, size) for key, size in zip(("height", "width"), default, strict=True)
    )
    return positive_int(height, key="height", where=path), positive_int(
        width, key="width", where=path
    )


def _check_fit(
    dit: DitConfig, vae: Checkpoint[VaeConfig] | None, text: Checkpoint[TextConfig] | None
) -> None:
    """The parts must speak of the same latents and the same text."""
    if vae is not None and vae.config.z_dim != dit.in_dim:
        raise _misfit("VAE", "--vae", f"{vae.config.z_dim} latent channels", dit.in_dim)
    if text is not None and text.config.dim != dit.text_dim:
        raise _misfit(
            "text encoder", "--text-encoder", f"embeddings of {text.config.dim}", dit.text_dim
        )


def _misfit(part: str, option: str, has: str, wanted: int) -> CheckpointError:
    return CheckpointError(
        f"the {part} does not belong to this denoiser",
        because=f"it has {has}, the denoiser takes {wanted}",
        fix=f"name the right file with {option}",
    )
