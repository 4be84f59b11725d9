from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llvq.errors import CheckpointError, SessionError
from llvq.runtime.prompts import PromptTokenizer, clean

WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "walks", "&", "caf\u00e9"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocab = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_ids_are_padded_with_zero_and_masked(folder: Path, name: str) -> None:
    tokens = PromptTokenizer(folder / name, 6).encode("a cat walks")
    assert tokens.ids.tolist() == [[3, 4, 5, 1, 0, 0]]
    assert tokens.mask.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert tokens.ids.dtype == tokens.mask.dtype == torch.int64
    assert not tokens.truncated


def test_a_long_prompt_is_cut_keeps_its_end_token_and_says_so(folder: Path) -> None:
    tokens = PromptTokenizer(folder, 3).encode("a cat walks")
    assert tokens.ids.tolist() == [[3, 4, 1]] and tokens.truncated
    assert not PromptTokenizer(folder, 4).encode("a cat walks").truncated


@pytest.mark.parametrize(
    ("dirty", "text"),
    [
        ("  a \n\t cat ", "a cat"),
        ("a &amp;amp; cat", "a & cat"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("a&nbsp;cat", "a cat"),
    ],
)
def test_cleaning(dirty: str, text: str) -> None:
    assert clean(dirty) == text


@pytest.mark.parametrize("prompt", ["", "  \n", "&nbsp;"])
def test_an_empty_prompt(folder: Path, prompt: str) -> None:
    with pytest.raises(SessionError, match="empty"):
        PromptTokenizer(folder, 6).encode(prompt)


@pytest.mark.parametrize("content", [None, "", "{}", "\x00", '{"model": 3}'])
def test_not_a_tokenizer(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        PromptTokenizer(tmp_path, 6)
