"""LoRAs in weights: PEFT's own merge is the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.lora import Lora, read_lora
from llvq.checkpoints.merged import MergedSource, merge
from llvq.checkpoints.specs import dit_specs
from llvq.errors import CheckpointError
from llvq.models.config import DitConfig
from llvq.models.dit import CausalWanDit

TARGETS = ["q", "k", "v", "o", "ffn.0", "ffn.2"]
ALPHA = 6
Weights = dict[str, torch.Tensor]


@pytest.fixture
def trained(dit_config: DitConfig, tmp_path: Path) -> tuple[Weights, Weights, Weights]:
    """Weights of a denoiser, a LoRA over its blocks' linears, and both as PEFT merges them."""
    torch.manual_seed(0)
    model = CausalWanDit(dit_config)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=ALPHA, target_modules=TARGETS))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) / 16)
    lora = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(peft).items()}
    return base, lora, peft.merge_and_unload().state_dict()


def opened(tmp_path: Path, base: Weights, lora: Weights, **said: object) -> tuple[Path, Lora]:
    torch.save({"generator": {f"model.{n}": t for n, t in base.items()}, **said}, tmp_path / "m.pt")
    torch.save({"generator_lora": lora, "step": 1}, tmp_path / "lora.pt")
    return tmp_path / "m.pt", read_lora(tmp_path / "lora.pt", alpha=ALPHA)


def test_merged_as_peft_merges(
    tmp_path: Path, trained: tuple[Weights, Weights, Weights], dit_config: DitConfig
) -> None:
    base, adapter, expected = trained
    path, lora = opened(tmp_path, base, adapter)
    assert len(lora.layers) == 10 * dit_config.num_layers
    merged = merge(read_dit(path), path, [lora])
    assert set(merged.tensors.names()) == set(expected) == set(dit_specs(dit_config))
    for name, tensor in expected.items():
        assert torch.allclose(merged.tensors.read(name), tensor, rtol=1e-6, atol=1e-7), name
        assert torch.equal(base[name], tensor) == (name not in lora.layers)
    assert lora.notes[0] in merged.notes


def test_bf16_is_rounded_once(tmp_path: Path, trained: tuple[Weights, Weights, Weights]) -> None:
    """PEFT merges an fp32 copy of the same values; its result, rounded, is the oracle."""
    base, adapter, _ = trained
    low = {name: tensor.bfloat16() for name, tensor in base.items()}
    path, lora = opened(tmp_path, low, adapter)
    source = merge(read_dit(path), path, [lora]).tensors
    name = "blocks.1.ffn.2.weight"
    a, b = (adapter[f"base_model.model.blocks.1.ffn.2.lora_{side}.weight"] for side in "AB")
    exact = low[name].double() + ALPHA / 4 * (b.double() @ a.double())
    rounded = source.read(name)
    assert rounded.dtype == torch.bfloat16
    assert (rounded != exact.bfloat16()).float().mean() < 1e-3  # ties, within fp32
    assert source.spec(name) == read_dit(path).tensors.spec(name)


def test_rows_are_those_of_the_whole(
    tmp_path: Path, trained: tuple[Weights, Weights, Weights]
) -> None:
    path, lora = opened(tmp_path, trained[0], trained[1])
    source = MergedSource(read_dit(path).tensors, [lora])
    for name in ("blocks.0.ffn.0.weight", "blocks.0.ffn.0.bias"):
        whole = source.read(name)
        rows = [source.read_rows(name, i, min(i + 50, 160)) for i in range(0, 160, 50)]
        assert torch.allclose(torch.cat(rows), whole, atol=1e-7)
        assert source.packed(name) is None


def test_two_loras_add_up(tmp_path: Path, trained: tuple[Weights, Weights, Weights]) -> None:
    base, adapter, _ = trained
    path, lora = opened(tmp_path, base, adapter)
    torch.save({n: t * 2 if "lora_B" in n else t for n, t in adapter.items()}, tmp_path / "l2.pt")
    second = read_lora(tmp_path / "l2.pt", alpha=ALPHA)
    name = "blocks.0.cross_attn.v.weight"
    once = merge(read_dit(path), path, [lora]).tensors.read(name)
    both = merge(read_dit(path), path, [lora, second]).tensors.read(name)
    assert torch.allclose(both - base[name], 3 * (once - base[name]), atol=1e-6)


def test_the_same_lora_twice_under_another_name(
    tmp_path: Path, trained: tuple[Weights, Weights, Weights]
) -> None:
    path, lora = opened(tmp_path, trained[0], trained[1])
    save_file({n: t.contiguous() for n, t in trained[1].items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="one LoRA would be merged twice") as caught:
        merge(read_dit(path), path, [lora, read_lora(tmp_path / "x.safetensors")])
    assert lora.sha256[:16] in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        {"merged_lora": True},
        {"source_lora_ckpt": "runs/dmd/model.pt"},
        {"checkpoint_format": "longlive_generator_merged_lora"},
        {"checkpoint_format": "longlive_generator_merged_bf16"},
    ],
)
def test_a_base_that_says_it_is_merged(
    tmp_path: Path, trained: tuple[Weights, Weights, Weights], said: dict[str, object]
) -> None:
    path, lora = opened(tmp_path, trained[0], trained[1], **said)
    with pytest.raises(CheckpointError, match=r"already merged into m\.pt") as caught:
        merge(read_dit(path), path, [lora])
    assert f"{next(iter(said))} = {next(iter(said.values()))}" in str(caught.value)
    assert merge(read_dit(path), path, []).tensors.names()


def test_a_base_that_says_it_is_not(
    tmp_path: Path, trained: tuple[Weights, Weights, Weights]
) -> None:
    """save_merged_nvfp4_generator.py --no_merge_lora."""
    said = {"checkpoint_format": "longlive_generator_merged_bf16", "merged_lora": False}
    path, lora = opened(tmp_path, trained[0], trained[1], **said)
    assert isinstance(merge(read_dit(path), path, [lora]).tensors, MergedSource)


def test_a_file_with_both_is_asked_about(
    tmp_path: Path, trained: tuple[Weights, Weights, Weights]
) -> None:
    path, other = opened(tmp_path, trained[0], trained[1], generator_lora=trained[1])
    for loras in ([], [other]):
        with pytest.raises(CheckpointError, match="a LoRA that is not merged into it") as caught:
            merge(read_dit(path), path, loras)
        assert f"--lora {path}" in str(caught.value)
    own = read_lora(path, alpha=ALPHA)
    assert own.sha256 == other.sha256
    assert isinstance(merge(read_dit(path), path, [own]).tensors, MergedSource)


def test_a_lora_of_another_model(tmp_path: Path, trained: tuple[Weights, Weights, Weights]) -> None:
    base, adapter, _ = trained
    changed = {n.replace("blocks.1.ffn.0", "blocks.9.ffn.0"): t for n, t in adapter.items()}
    name = "base_model.model.blocks.0.self_attn.q.lora_A.weight"
    path, lora = opened(tmp_path, base, changed | {name: torch.zeros(4, 64)})
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        merge(read_dit(path), path, [lora])
    assert "blocks.0.self_attn.q.weight is [128, 128], B @ A is [128, 64]" in str(caught.value)
    assert "blocks.9.ffn.0.weight, and the model has no such linear" in str(caught.value)
