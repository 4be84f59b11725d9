"""Tensors from files: noise and embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llvq.compiler import Compiled
from llvq.errors import SessionError
from llvq.runtime.inputs import find_tensor, read_tensor, script_of_embeds


def test_equal_rows_are_one_prompt(compiled_nvfp4: Compiled) -> None:
    facts = compiled_nvfp4.facts
    a, b = torch.ones(2, 1, facts.text_len, facts.text_dim) * torch.tensor([1, 2]).view(2, 1, 1, 1)
    script = script_of_embeds(facts, torch.cat([a, a, b]), cuts=[2])
    assert [prompt.scene_cut for prompt in script] == [False, False, True]
    assert script[0].embeds is script[1].embeds and script[1].embeds is not script[2].embeds
    assert script[0].embeds.dtype == facts.torch_dtype
    assert script[0].embeds.shape == (1, facts.text_len, facts.text_dim)


@pytest.mark.parametrize("cut", [-1, 0, 3])
def test_a_shot_begins_inside_the_video(compiled_nvfp4: Compiled, cut: int) -> None:
    facts = compiled_nvfp4.facts
    with pytest.raises(SessionError, match=f"begins at chunk {cut}"):
        script_of_embeds(facts, torch.zeros(3, facts.text_len, facts.text_dim), [cut])


def test_embeddings_of_another_model_are_refused(compiled_nvfp4: Compiled) -> None:
    with pytest.raises(SessionError, match="prompt_embeds has shape"):
        script_of_embeds(compiled_nvfp4.facts, torch.zeros(3, 7, 9))


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "io.safetensors"
    save_file({"noise": torch.zeros(2)}, path)
    assert torch.equal(read_tensor(path, "noise"), torch.zeros(2))
    assert find_tensor(path, "initial_latent") is None
    with pytest.raises(SessionError, match="no tensor 'prompt_embeds'"):
        read_tensor(path, "prompt_embeds")


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "io.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SessionError, match="cannot be read"):
        find_tensor(path, "noise")
