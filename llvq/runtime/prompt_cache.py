"""Prompt embeddings on disk, by content: what an encoder reads decides what it gives.

An entry is a safetensors file named by a sha256 over the identity of the encoder and the token ids.
It is never changed, only replaced as a whole, so that several processes may share a folder. It
holds no prompt in clear. Nothing is evicted: a box without its encoder could not make it again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

from llvq import canonical_json
from llvq.errors import OutputError, SessionError
from llvq.runtime.facts import RunFacts
from llvq.runtime.prompts import PromptTokens

TENSOR, DIGEST = "prompt_embeds", "sha256"
DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
HEADER_ROOM = 4096  # bytes


class DamagedEntry(SessionError):
    """An entry of the cache that is not what was written under its name."""


class PromptCache:
    """Embeddings of one encoder in a folder, which is made when the first is written.

    Embeddings are [1, text_len, text_dim] in the dtype of the model. Rows after the last that is
    not zero (the padding) are not stored.
    """

    def __init__(self, folder: str | Path, encoder: str, facts: RunFacts) -> None:
        self.folder, self._encoder, self._facts = Path(folder), encoder, facts

    def path_of(self, tokens: PromptTokens) -> Path:
        """Where the entry of these tokens is, or would be."""
        ids = tokens.ids[tokens.mask.bool()].tolist()
        document = canonical_json.dumps({"encoder": self._encoder, "ids": ids})
        return self.folder / f"{hashlib.sha256(document).hexdigest()}.safetensors"

    def get(self, tokens: PromptTokens) -> Tensor | None:
        """The embedding, bit for bit as it was put, or None if there is none.

        Raises DamagedEntry; SessionError if the folder or the entry cannot be read.
        """
        path = self.path_of(tokens)
        try:
            data = _bytes_of(path, self._facts)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SessionError(
                "the prompt cache cannot be read",
                where=str(path),
                because=error.strerror or str(error),
                fix="make the folder readable, or name another with --prompt-cache",
            ) from error
        facts = self._facts
        nbytes = facts.text_len * facts.text_dim * facts.torch_dtype.itemsize
        padded = bytearray(_rows_in(data, path, facts).ljust(nbytes, b"\0"))
        return torch.frombuffer(padded, dtype=facts.torch_dtype).reshape(
            1, facts.text_len, facts.text_dim
        )

    def put(self, tokens: PromptTokens, embeds: Tensor) -> None:
        """Write or replace an entry, at once or not at all. Raises OutputError."""
        path = self.path_of(tokens)
        rows = _without_padding(embeds[0].cpu())
        digest = _digest(path, rows.view(torch.uint8).numpy().tobytes())
        data = save({TENSOR: rows, DIGEST: torch.tensor(list(digest), dtype=torch.uint8)})
        # Not the process id: machines that share a folder may have the same one.
        part = self.folder / f".{path.stem}.part-{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(part, "xb") as file:
                file.write(data)
            os.replace(part, path)
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error
        finally:
            with suppress(OSError):
                part.unlink()

    def check_writable(self) -> None:
        """Make the folder. Raises OutputError, before an encoder is loaded for nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise self._unwritable("you may not write to this folder")

    def _unwritable(self, because: str) -> OutputError:
        return OutputError(
            "the prompt cache cannot be written",
            where=str(self.folder),
            because=because,
            fix="free space there, or name a folder you may write to with --prompt-cache",
        )


def _bytes_of(path: Path, facts: RunFacts) -> bytes:
    """The whole file, opened once: what `safe_open` reads twice may be two entries."""
    limit = facts.text_len * facts.text_dim * facts.torch_dtype.itemsize + HEADER_ROOM
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _damaged(path, f"it is larger than {limit} bytes")
    return data


def _rows_in(data: bytes, path: Path, facts: RunFacts) -> bytes:
    """The bytes of the rows of an entry. Raises DamagedEntry."""
    try:
        entry = dict(deserialize(data))
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    if entry.keys() != {TENSOR, DIGEST}:
        raise _damaged(path, f"it does not hold {TENSOR} and {DIGEST}")
    shape, dtype = entry[TENSOR]["shape"], entry[TENSOR]["dtype"]
    fits = len(shape) == 2 and shape[0] <= facts.text_len and shape[1] == facts.text_dim
    wanted = DTYPE_NAMES[facts.torch_dtype]
    if not fits or dtype != wanted:
        raise _damaged(
            path, f"it is {dtype} {shape}, not {wanted} [up to {facts.text_len}, {facts.text_dim}]"
        )
    rows = bytes(entry[TENSOR]["data"])
    if _digest(path, rows) != bytes(entry[DIGEST]["data"]):
        raise _damaged(path, "its sha256 is not the one that was written with it")
    return rows


def _without_padding(embeds: Tensor) -> Tensor:
    """[rows, text_dim] without the rows at the end whose bytes are all zero."""
    used = embeds.contiguous().view(torch.uint8).any(dim=1).nonzero()
    return embeds[: int(used[-1]) + 1 if len(used) else 0].clone()


def _digest(path: Path, rows: bytes) -> bytes:
    """Over the name, too: an entry under another's name would be another prompt."""
    return hashlib.sha256(path.stem.encode("ascii") + rows).digest()


def _damaged(path: Path, because: str) -> DamagedEntry:
    return DamagedEntry(
        "an entry of the prompt cache is damaged",
        where=str(path),
        because=because,
        fix="delete it and encode its prompt again: llvq encode BOX --prompt-cache "
        f"{path.parent}, with a box that has the text encoder",
    )
