"""The captured, rewritten VAE decoder: the golden frames, whatever the chunk."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llvq.compiler import compile_model, instantiate
from llvq.models.chunk import meta_model
from llvq.models.config import DitConfig, ModelConfig, StreamConfig, VaeConfig
from llvq.recipe import DecodeRecipe, recipe_from_dict
from llvq.runtime.decoder import Decoder
from llvq.runtime.denoiser import Denoised
from llvq.runtime.executable import Executable
from llvq.runtime.session import Prompt, Session
from llvq.sources import DictSource, JoinedSource

DATA = Path(__file__).parent.parent / "data"
BF16_LIKE = recipe_from_dict(
    {"name": "exact", "dtype": "float32", "linear": {"exclude": ["*"]}, "kv": {"format": "none"}}
)


@cache
def golden_executable(
    frames_per_chunk: int, latents_per_call: int
) -> tuple[Executable, dict[str, torch.Tensor]]:
    sizes = json.loads((DATA / "vae.json").read_text())
    io = load_file(DATA / "vae.io.safetensors")
    vae = VaeConfig(
        dim=sizes["dim"],
        dec_dim=sizes["dec_dim"],
        z_dim=sizes["z_dim"],
        latent_mean=tuple(io["mean"].tolist()),
        latent_std=tuple(io["std"].tolist()),
    )
    dit = DitConfig(dim=32, ffn_dim=32, num_heads=1, num_layers=1, in_dim=8, out_dim=8,
                    text_dim=16, text_len=2)  # fmt: skip
    stream = StreamConfig(frames_per_chunk, 4 * frames_per_chunk, frames_per_chunk)
    config = ModelConfig(dit, stream, vae, None, tuple(sizes["latent_hw"]))
    recipe = replace(BF16_LIKE, decode=DecodeRecipe(latents_per_call))
    compiled = compile_model(config, recipe)
    weights = {f"vae.{k}": v for k, v in load_file(DATA / "vae.weights.safetensors").items()}
    shapes = {r.sources[0] for r in compiled.weights.values()} - set(weights)
    shapes -= set(compiled.constants)
    specs = meta_model(config, torch.float32).state_dict()
    dummies = {name: torch.zeros(specs[name].shape) for name in shapes}
    source = JoinedSource([("", DictSource(weights)), ("", DictSource(dummies))])
    return instantiate(compiled, source), io


@pytest.mark.parametrize(("frames_per_chunk", "latents_per_call"), [(1, 1), (5, 1), (5, 5)])
def test_golden_frames(frames_per_chunk: int, latents_per_call: int) -> None:
    executable, io = golden_executable(frames_per_chunk, latents_per_call)
    decoder = Decoder(executable)
    pieces = []
    for latent in io["latent"].transpose(1, 2).split(frames_per_chunk, dim=1):
        sigma = torch.zeros(latent.shape[:2])
        pieces += decoder.pixels(Denoised(latent, latent, torch.zeros_like(latent), sigma))
    frames = torch.cat(pieces, dim=2)
    assert (frames - io["decoded"]).abs().max() <= 1e-4 * io["decoded"].abs().max()


def test_the_golden_image_encoder() -> None:
    executable, io = golden_executable(5, 5)
    image = executable.stage("encode_image")({"image": io["video"][:, :, :1]})["image_latent"]
    wanted = io["encoded"].transpose(1, 2)[:, :1]
    assert (image - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_frames_are_pixels(executable: Executable) -> None:
    facts = executable.facts
    embeds = torch.zeros(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype)
    chunk = next(iter(Session(executable, [Prompt(embeds)])))
    assert chunk.frames is not None and chunk.frames.dtype == torch.uint8


def test_state_does_not_keep_feature_maps_alive(executable: Executable) -> None:
    """The state lives as long as the video: a view would hold the whole map it was cut from."""
    for name in ("decode_first", "decode"):
        stage = executable.stage(name)
        values = {s.name: torch.zeros(s.sizes, dtype=s.dtype) for s in stage.inputs}
        outputs = stage(values)
        state = [tensor for output, tensor in outputs.items() if ".state." in output]
        assert state
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in state)
