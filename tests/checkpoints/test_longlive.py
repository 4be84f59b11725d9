from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.specs import dit_specs
from llvq.errors import CheckpointError
from llvq.models.config import DitConfig

Weights = dict[str, torch.Tensor]


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def wrapped(weights: Weights) -> Weights:
    """As FSDP with activation checkpointing and torch.compile name them."""
    deep = {
        n.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): weights[n] for n in weights
    }
    return under("module._orig_mod.model._fsdp_wrapped_module.", deep)


LAYOUTS: dict[str, Callable[[Weights], dict[str, object]]] = {
    "generator": lambda w: {"generator": under("model.", w), "checkpoint_format": "longlive"},
    "training": lambda w: {
        "generator": under("model.", w),
        "generator_ema": wrapped({n: t + 1 for n, t in w.items()}),
        "generator_optimizer": {"state": {0: torch.zeros(1)}, "param_groups": []},
        "step": 10,
    },
    "ema only": lambda w: {"generator_ema": wrapped(w)},
    "model": lambda w: {"model": w, "optimizer": {"lr": torch.zeros(1)}},
    "raw": lambda w: dict(w),
    "raw, prefixed": lambda w: dict(under("model.", w)),
    "raw, wrapped": lambda w: dict(wrapped(w)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_module_names(
    tmp_path: Path, layout: str, dit_weights: Weights, dit_config: DitConfig
) -> None:
    torch.save(LAYOUTS[layout](dit_weights), tmp_path / "model.pt")
    checkpoint = read_dit(tmp_path / "model.pt")
    assert checkpoint.config == dit_config
    assert set(checkpoint.tensors.names()) == set(dit_weights)
    name = "blocks.1.ffn.2.weight"
    assert torch.equal(checkpoint.tensors.read(name), dit_weights[name])


def test_ema_weights_on_request(tmp_path: Path, dit_weights: Weights) -> None:
    torch.save(LAYOUTS["training"](dit_weights), tmp_path / "model.pt")
    ema = read_dit(tmp_path / "model.pt", use_ema=True).tensors
    name = "head.modulation"
    assert torch.equal(ema.read(name), dit_weights[name] + 1)


def test_ema_weights_that_are_not_there(tmp_path: Path, dit_weights: Weights) -> None:
    torch.save(dit_weights, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="no EMA"):
        read_dit(tmp_path / "model.pt", use_ema=True)


def test_a_folder_of_shards(tmp_path: Path, dit_weights: Weights, dit_config: DitConfig) -> None:
    for number, half in ((1, "blocks.0."), (2, "")):
        part = {n: t for n, t in dit_weights.items() if n.startswith("blocks.0.") == bool(half)}
        save_file(part, tmp_path / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    assert read_dit(tmp_path).config == dit_config


@pytest.mark.parametrize("shard", ["200KB", "10GB"])
def test_diffusers_folder_is_the_same_denoiser(
    tmp_path: Path, dit_weights: Weights, dit_config: DitConfig, shard: str
) -> None:
    """diffusers itself converts, loads and writes the weights, whole or in shards."""
    model = WanTransformer3DModel(
        num_attention_heads=dit_config.num_heads,
        attention_head_dim=dit_config.head_dim,
        in_channels=dit_config.in_dim,
        out_channels=dit_config.out_dim,
        text_dim=dit_config.text_dim,
        ffn_dim=dit_config.ffn_dim,
        num_layers=dit_config.num_layers,
    ).to(torch.bfloat16)
    model.load_state_dict(convert_wan_transformer_to_diffusers(dict(dit_weights)))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    checkpoint = read_dit(tmp_path)
    assert checkpoint.config == dit_config
    assert "diffusers' names" in checkpoint.notes[0] and len(checkpoint.notes) == 1
    assert ("shards" in checkpoint.notes[0]) == (shard == "200KB")
    for name, tensor in dit_weights.items():
        assert torch.equal(checkpoint.tensors.read(name), tensor)


def test_names_of_both_spellings(tmp_path: Path, dit_weights: Weights) -> None:
    weights = {**dit_weights, "blocks.1.attn1.to_q.bias": dit_weights["blocks.1.self_attn.q.bias"]}
    torch.save(weights, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="mixes two spellings") as caught:
        read_dit(tmp_path / "m.pt")
    assert "blocks.1.attn1.to_q.bias is diffusers'" in str(caught.value)


def test_published_files_are_recognised_by_what_they_say(
    tmp_path: Path, dit_weights: Weights
) -> None:
    """Metadata as LongLive's merge_lora_generator.py and save_merged_nvfp4_generator.py write."""
    for form in ("longlive_generator_merged_lora", "longlive_generator_merged_bf16"):
        said = {"checkpoint_format": form, "merged_lora": True, "source_lora_ckpt": None}
        torch.save({"generator": under("model.", dit_weights), **said}, tmp_path / "m.pt")
        (note, *_) = read_dit(tmp_path / "m.pt").notes
        assert note == (
            "recognised: denoiser of 2 layers of 128 channels, Wan's own names, "
            f"`generator` of a checkpoint, {form}"
        )


def test_the_format_that_longlive_gave_up_is_refused(tmp_path: Path, dit_weights: Weights) -> None:
    content = {"generator": dit_weights, "checkpoint_format": "longlive_generator_te_nvfp4"}
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="TransformerEngine's own tensors"):
        read_dit(tmp_path / "m.pt")


@pytest.mark.parametrize("group", ["generator_lora", "critic_lora"])
def test_a_lora_alone_says_how_to_merge_it(tmp_path: Path, group: str) -> None:
    name = "base_model.model.model.blocks.0.self_attn.q.lora_A.weight"
    torch.save({group: {name: torch.zeros(1, 1)}, "step": 1}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds a LoRA, and no model") as caught:
        read_dit(tmp_path / "m.pt")
    assert f"llvq quantize BASE --lora {tmp_path / 'm.pt'}" in str(caught.value)


def test_a_config_of_another_model_beside_it(tmp_path: Path, dit_weights: Weights) -> None:
    torch.save(dit_weights, tmp_path / "m.pt")
    (tmp_path / "config.json").write_text('{"_class_name": "WanModel", "num_layers": 30}')
    with pytest.raises(CheckpointError, match="disagree on num_layers"):
        read_dit(tmp_path / "m.pt")


@pytest.mark.parametrize("golden", ["single_shot_4step", "i2v"])
def test_the_names_are_those_of_the_public_reference(golden: str) -> None:
    file = Path(__file__).parents[1] / "data" / f"{golden}.weights.safetensors"
    assert {f"model.{name}" for name in read_dit(file).tensors.names()} == set(load_file(file))


def test_heads_are_asked_for_stated_or_guessed_in_this_order(
    tmp_path: Path, dit_weights: Weights
) -> None:
    path = tmp_path / "m.safetensors"
    save_file(dit_weights, path)
    guessed = read_dit(path)
    assert guessed.config.num_heads == 1 and "dim / 128" in guessed.notes[1]
    save_file(dit_weights, path, metadata={"num_heads": "2"})
    assert read_dit(path).config.num_heads == 2 and len(read_dit(path).notes) == 1
    (tmp_path / "config.json").write_text('{"num_heads": 4, "text_len": 64}')
    assert read_dit(path).config.num_heads == 4 and read_dit(path).config.text_len == 64
    assert read_dit(path, num_heads=8).config.num_heads == 8


def test_heads_that_cannot_be_guessed_or_do_not_divide(
    tmp_path: Path, dit_config: DitConfig
) -> None:
    specs = dit_specs(replace(dit_config, dim=96))
    torch.save({name: torch.zeros(shape) for name, shape in specs.items()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="unknown") as caught:
        read_dit(tmp_path / "m.pt")
    assert "--num-heads" in str(caught.value)
    with pytest.raises(CheckpointError, match="do not divide"):
        read_dit(tmp_path / "m.pt", num_heads=5)
    assert read_dit(tmp_path / "m.pt", num_heads=3).config.head_dim == 32


@pytest.mark.parametrize("text", ["{", "[]", '{"num_heads": true}', '{"num_heads": -1}'])
def test_a_bad_config_beside_the_file(tmp_path: Path, dit_weights: Weights, text: str) -> None:
    torch.save(dit_weights, tmp_path / "m.pt")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_dit(tmp_path / "m.pt")


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="not a denoiser of LongLive, Self-Forcing or Wan"):
        read_dit(tmp_path / "m.safetensors")


def test_wrong_keys_come_in_one_error(tmp_path: Path, dit_weights: Weights) -> None:
    del dit_weights["blocks.0.norm3.bias"]
    dit_weights["blocks.999999.x"] = torch.zeros(1)
    dit_weights["head.modulation"] = torch.zeros(2, 2)
    save_file(dit_weights, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_dit(tmp_path / "m.safetensors")
    for words in ("blocks.*.norm3.bias", "blocks.999999.x", "head.modulation is [2, 2]"):
        assert words in str(caught.value)


def test_a_name_that_is_there_twice(tmp_path: Path, dit_weights: Weights) -> None:
    both = dit_weights | under("module.", dit_weights)
    torch.save(both, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="there twice"):
        read_dit(tmp_path / "m.pt")
