"""A tokenizer with one token per word of the grammar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from examples.tiny_longlive.captions import vocabulary

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def word_tokenizer() -> Tokenizer:
    """Lower case, words and punctuation, `</s>` at the end; unknown words become `<unk>`."""
    words = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words["</s>"])]
    )
    return tokenizer


def write_tokenizer(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    word_tokenizer().save(str(path))


def encode(prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """ids and mask, int64 [prompts, length], as llvq's PromptTokenizer gives them."""
    tokenizer = word_tokenizer()
    tokenizer.enable_truncation(max_length=length)
    tokenizer.enable_padding(length=length, pad_id=0)
    encodings = tokenizer.encode_batch(list(prompts))
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])
