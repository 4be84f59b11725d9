"""The sizes of tiny-longlive, its modules before training, and the folder that they are kept in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.tiny_longlive.data import SIZE
from examples.tiny_longlive.tokens import write_tokenizer
from llvq.checkpoints.text_names import TABLE
from llvq.models.config import DitConfig, ModelConfig, StreamConfig, TextConfig, VaeConfig
from llvq.models.dit import CausalWanDit
from llvq.models.text import TextEncoder
from llvq.models.vae import WanVae

TRAINED = Path(__file__).parent / "weights"  # of the trained model
VAE_FILE = "Wan2.2_VAE.safetensors"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.safetensors"
TOKENIZER_FILE = "tokenizer.json"
SHARD_BYTES = 15_000_000
VOCABULARY = 96


def tiny_longlive() -> ModelConfig:
    """256x256 pixels, 64 tokens per latent frame, chunks of 4 latent frames in a window of 16."""
    return ModelConfig(
        dit=DitConfig(dim=384, ffn_dim=1024, num_heads=6, num_layers=6, text_dim=256, text_len=64),
        stream=StreamConfig(frames_per_chunk=4, window_frames=16, sink_frames=4),
        # Statistics that change nothing: those of the trained latents come with the weights.
        vae=VaeConfig(
            dim=16, dec_dim=24, num_res_blocks=1, latent_mean=(0.0,) * 48, latent_std=(1.0,) * 48
        ),
        text=TextConfig(
            vocab_size=VOCABULARY, dim=256, attn_dim=256, ffn_dim=512, num_heads=4, num_layers=2
        ),
        latent_hw=(SIZE // 16, SIZE // 16),
    )


def new_dit(config: ModelConfig) -> CausalWanDit:
    """A denoiser whose blocks do nothing at first: modulation, gates and head start at zero."""
    dit = CausalWanDit(config.dit)
    for name, parameter in dit.named_parameters():
        if name.startswith(("time_projection.1.", "head.head.")) or name.endswith(".bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2 and "modulation" not in name:
            nn.init.xavier_uniform_(parameter.data.flatten(1))
    return dit


def new_text_encoder(config: ModelConfig) -> TextEncoder:
    """A UMT5 encoder with small queries, since its scores are not scaled."""
    assert config.text is not None
    text = TextEncoder(config.text)
    for name, parameter in text.named_parameters():
        if name.endswith("SelfAttention.q.weight"):
            nn.init.normal_(parameter, std=config.text.dim**-0.5 / 8)
        elif name.endswith("relative_attention_bias.weight"):
            nn.init.zeros_(parameter)
    return text


def write_vae(folder: Path, vae: WanVae, mean: Tensor, std: Tensor) -> None:
    """The VAE in bf16, with the statistics of its latents beside it."""
    with _replacing(folder) as new:
        save_file(_bf16(vae.state_dict()), new / VAE_FILE)
        statistics = {"latent_mean": mean.tolist(), "latent_std": std.tolist()}
        (new / "vae_config.json").write_text(json.dumps(statistics, indent=1) + "\n")


def read_vae_config(folder: Path, config: VaeConfig) -> VaeConfig:
    statistics = json.loads((folder / "vae_config.json").read_text())
    return replace(config, **{key: tuple(values) for key, values in statistics.items()})


def read_vae(folder: Path, config: ModelConfig) -> WanVae:
    assert config.vae is not None
    vae = WanVae(read_vae_config(folder, config.vae))
    vae.load_state_dict(load_file(folder / VAE_FILE))
    return vae


def write_denoiser(
    folder: Path, config: ModelConfig, dit: Mapping[str, Tensor], text: Mapping[str, Tensor]
) -> None:
    """Denoiser in shards, text encoder, tokenizer and config.json, as llvq.checkpoints reads."""
    stated = {
        "height": config.latent_hw[0] * 16,
        "width": config.latent_hw[1] * 16,
        "num_heads": config.dit.num_heads,
        "text_len": config.dit.text_len,
        "stream": asdict(config.stream),
    }
    with _replacing(folder) as new:
        _write_shards(new, {f"model.{name}": tensor for name, tensor in _bf16(dit).items()})
        save_file({TABLE.to_right(k): v for k, v in _bf16(text).items()}, new / TEXT_FILE)
        write_tokenizer(new / TOKENIZER_FILE)
        (new / "config.json").write_text(json.dumps(stated, indent=1) + "\n")


def read_denoiser(folder: Path, config: ModelConfig) -> tuple[CausalWanDit, TextEncoder]:
    assert config.text is not None
    dit, text = CausalWanDit(config.dit), TextEncoder(config.text)
    weights: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("model-*.safetensors")):
        weights |= load_file(shard)
    dit.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
    stored = load_file(folder / TEXT_FILE)
    text.load_state_dict({TABLE.to_left(name): w for name, w in stored.items()})
    return dit, text


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder for new files, which take the place of the old ones in `folder` when all are there.

    So a process that is killed while it writes leaves the weights of before.
    """
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    for file in sorted(new.iterdir()):
        file.replace(folder / file.name)
    new.rmdir()


def _bf16(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in state.items()}


def _write_shards(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Numbered safetensors of at most SHARD_BYTES, and the index that names them."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=1, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text)
