"""Prompts of a calibration: files that are none, and embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llvq.calibrate.prompts import BUILTIN, encode, loaded, read_embeds, read_prompts
from llvq.checkpoints.model import VideoModel
from llvq.compiler import compile_model, instantiate
from llvq.errors import CheckpointError, SessionError
from llvq.recipe import BF16
from llvq.runtime.prompts import PromptTokenizer
from llvq.sources import DictSource


def test_one_prompt_per_line(prompts_file: Path) -> None:
    assert read_prompts(prompts_file) == ("A red kite.", "A blue boat, at night.")
    assert read_prompts(None) is BUILTIN


@pytest.mark.parametrize("data", [b"", b" \n\n", b"\xff\xfe", b"a\n" * 10_001])
def test_a_file_without_prompts(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(SessionError, match=r"prompts\.txt") as caught:
        read_prompts(path)
    assert caught.value.where == str(path) and caught.value.fix


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="not a file of prompts"):
        read_prompts(tmp_path / "none.txt")


def test_embeddings_are_those_of_the_compiled_encoder(model: VideoModel) -> None:
    texts, counted = ("A red kite.", "Rain"), []
    embeds = encode(model, texts, "cpu", done=counted.append)
    compiled = instantiate(compile_model(model.config, BF16), model.source)
    tokenizer = PromptTokenizer(model.bundle.tokenizer or "", model.config.dit.text_len)
    for row, text in zip(embeds.split(1), texts, strict=True):
        tokens = tokenizer.encode(text)
        expected = compiled.stage("encode_text")({"ids": tokens.ids, "mask": tokens.mask})
        torch.testing.assert_close(row, expected["prompt_embeds"], rtol=2**-7, atol=2**-7)
    assert counted == [1, 2]


def test_embeddings_from_a_file(embeds_file: Path, model: VideoModel) -> None:
    embeds = read_embeds(embeds_file, model)
    assert embeds.shape == (3, model.config.dit.text_len, model.config.dit.text_dim)
    assert embeds.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 31), (0, 8, 32)])
def test_embeddings_of_another_model(
    tmp_path: Path, model: VideoModel, shape: tuple[int, ...]
) -> None:
    save_file({"prompt_embeds": torch.ones(shape)}, tmp_path / "e.safetensors")
    with pytest.raises(SessionError, match=r"\[videos, 8, 32\]|has shape"):
        read_embeds(tmp_path / "e.safetensors", model)


@pytest.mark.parametrize("part", ["text encoder", "tokenizer"])
def test_without_an_encoder(model: VideoModel, part: str) -> None:
    bare = (
        replace(model, bundle=replace(model.bundle, tokenizer=None))
        if part == "tokenizer"
        else replace(model, config=replace(model.config, text=None))
    )
    with pytest.raises(CheckpointError, match=f"no {part} to calibrate with") as caught:
        encode(bare, ("a",), "cpu", done=int)
    assert "--calibrate-prompts" in str(caught.value.fix)


def test_weights_are_copies() -> None:
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    tensors = loaded(DictSource({"dit.a.weight": weight, "vae.b": weight}), "dit.", "cpu")
    tensors["a.weight"].zero_()
    assert list(tensors) == ["a.weight"] and weight.all()
