from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llvq.checkpoints.lora import read_lora
from llvq.errors import CheckpointError

Q, FFN = "blocks.0.self_attn.q", "blocks.1.ffn.0"
PEFT = "base_model.model.model."


def tensors(rank: int = 4, *, value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        f"{PEFT}{Q}.lora_A.weight": torch.full((rank, 6), value),
        f"{PEFT}{Q}.lora_B.weight": torch.full((8, rank), 2.0),
        f"{PEFT}{FFN}.lora_A.weight": torch.full((rank, 3), 3.0),
        f"{PEFT}{FFN}.lora_B.weight": torch.full((5, rank), 4.0),
    }


def write(path: Path, content: dict[str, object]) -> Path:
    torch.save(content, path)
    return path


def test_a_training_checkpoint(tmp_path: Path) -> None:
    """The critic's LoRA is no business of ours, whatever it holds."""
    critic = {f"{PEFT}odd.lora_A.weight": torch.zeros(9, 9)}
    content = {"generator_lora": tensors(), "critic_lora": critic, "step": 5000}
    lora = read_lora(write(tmp_path / "model.pt", content))
    assert set(lora.layers) == {f"{Q}.weight", f"{FFN}.weight"}
    assert (lora.rank, lora.alpha, lora.scale) == (4, 4.0, 1.0)
    assert "rank 4 and alpha 4 over 2 linears" in lora.notes[0]
    assert "does not say its alpha" in lora.notes[1] and "--lora-alpha" in lora.notes[1]
    assert lora.record() == {
        "name": "model.pt", "sha256": lora.sha256, "rank": 4, "alpha": 4.0, "layers": 2,
    }  # fmt: skip


def test_what_peft_saves(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8, "rank_pattern": {}}')
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        lora = read_lora(path)
        assert (lora.alpha, lora.scale, len(lora.notes)) == (8.0, 2.0, 1)
    assert read_lora(tmp_path, alpha=2.0).scale == 0.5


@pytest.mark.parametrize("said", [{"lora_alpha": 2}, {"adapter": {"alpha": 2.0, "rank": 4}}])
def test_the_alpha_that_the_file_says(tmp_path: Path, said: dict[str, object]) -> None:
    path = write(tmp_path / "m.pt", {"generator_lora": tensors(), **said})
    assert read_lora(path).alpha == 2.0


@pytest.mark.parametrize("alpha", [0, -1, "x", float("nan"), float("inf"), [], True, 10**400])
def test_an_alpha_that_is_none(tmp_path: Path, alpha: object) -> None:
    save_file(tensors(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
    with pytest.raises(CheckpointError, match="alpha = ") as caught:
        read_lora(tmp_path)
    assert "--lora-alpha" in str(caught.value)


def test_the_hash_is_of_the_tensors_and_of_nothing_else(tmp_path: Path) -> None:
    one = read_lora(write(tmp_path / "a.pt", {"generator_lora": tensors(), "step": 1}))
    save_file(
        {k.replace(".weight", ".default.weight"): v for k, v in reversed(tensors().items())},
        tmp_path / "b.safetensors",
    )
    assert read_lora(tmp_path / "b.safetensors").sha256 == one.sha256
    other = read_lora(write(tmp_path / "c.pt", {"generator_lora": tensors(value=1.5)}))
    assert other.sha256 != one.sha256


BAD: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "A without B": ({f"{PEFT}{Q}.lora_B.weight": None}, f"{Q}.weight has no lora_B"),
    "B without A": ({f"{PEFT}{Q}.lora_A.weight": None}, f"{Q}.weight has no lora_A"),
    "other ranks in one layer": (
        {f"{PEFT}{Q}.lora_B.weight": torch.zeros(8, 3)},
        "A is [4, 6] and B [8, 3], of different rank",
    ),
    "other ranks in two layers": (
        {
            f"{PEFT}{Q}.lora_A.weight": torch.zeros(3, 6),
            f"{PEFT}{Q}.lora_B.weight": torch.zeros(8, 3),
        },
        "its layers have ranks 3, 4",
    ),
    "a convolution": (
        {f"{PEFT}{Q}.lora_A.weight": torch.zeros(4, 6, 1)},
        "[4, 6, 1], not a matrix",
    ),
    "integers": (
        {f"{PEFT}{Q}.lora_A.weight": torch.zeros(4, 6, dtype=torch.int8)},
        "torch.int8 [4, 6], not a matrix of floating point",
    ),
    "DoRA": (
        {f"{PEFT}{Q}.lora_magnitude_vector.weight": torch.zeros(8)},
        "lora_magnitude_vector.weight is no lora_A or lora_B",
    ),
    "twice": (
        {f"{PEFT}{Q}.lora_A.default.weight": torch.zeros(4, 6)},
        "are one tensor",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_listed(tmp_path: Path, case: str) -> None:
    changed, because = BAD[case]
    content = {k: v for k, v in (tensors() | changed).items() if v is not None}
    with pytest.raises(CheckpointError, match=r"not a LoRA that llvq can merge") as caught:
        read_lora(write(tmp_path / "m.pt", {"generator_lora": content}))
    assert because in str(caught.value)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    content = {f"blocks.{i}.x.weight": torch.zeros(1, 1) for i in range(100)}
    with pytest.raises(CheckpointError) as caught:
        read_lora(write(tmp_path / "m.pt", content))
    assert "and 94 more" in str(caught.value)


@pytest.mark.parametrize("key", ["use_dora", "use_rslora", "alpha_pattern"])
def test_options_of_peft_that_compute_something_else(tmp_path: Path, key: str) -> None:
    save_file(tensors(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, key: {"q": 1}}))
    with pytest.raises(CheckpointError) as caught:
        read_lora(tmp_path)
    assert key in str(caught.value)
