"""Prompts to token ids, cleaned and padded as the model was trained.

Source: the public LongLive-2.0 and Wan2.2 tokenization.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import ftfy
import torch
from tokenizers import Tokenizer

from llvq.errors import CheckpointError, SessionError

PAD_ID = 0


@dataclass(frozen=True)
class PromptTokens:
    """ids int64 [1, text_len], padded with 0; mask int64 [1, text_len], 1 on real tokens."""

    ids: torch.Tensor
    mask: torch.Tensor
    truncated: bool


class PromptTokenizer:
    """`path`: a tokenizer.json, or the folder it is in. `text_len`: tokens per prompt.

    Errors: CheckpointError if there is no readable tokenizer.json.
    """

    def __init__(self, path: str | PathLike[str], text_len: int) -> None:
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        try:
            # from_buffer reports bad contents as ValueError, from_file as a bare Exception.
            self._tokenizer = Tokenizer.from_buffer(file.read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{file.name} is not a readable tokenizer",
                where=str(file),
                because=str(error),
                fix="name the tokenizer.json of google/umt5-xxl with --tokenizer",
            ) from error
        self._tokenizer.enable_truncation(max_length=text_len)
        self._tokenizer.enable_padding(length=text_len, pad_id=PAD_ID)

    def encode(self, prompt: str) -> PromptTokens:
        """Errors: SessionError if nothing is left of the prompt after cleaning."""
        text = clean(prompt)
        if not text:
            raise SessionError(
                "the prompt is empty",
                where=repr(prompt),
                because="nothing but white space is left after cleaning",
                fix="describe the video in at least one word",
            )
        encoding = self._tokenizer.encode(text, add_special_tokens=True)
        return PromptTokens(
            ids=torch.tensor([encoding.ids], dtype=torch.int64),
            mask=torch.tensor([encoding.attention_mask], dtype=torch.int64),
            truncated=bool(encoding.overflowing),
        )


def clean(text: str) -> str:
    """Mend mis-decoded text, undo HTML escapes (also doubled ones), single spaces."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()
