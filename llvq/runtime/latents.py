"""Latents out: a safetensors file that appears under its name only once it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save
from torch import Tensor

from llvq.errors import OutputError


class LatentWriter:
    """Collects latents [1, C, channels, h, w] and writes them as one tensor `latents`.

    Like VideoWriter: leaving the `with` block writes the file, leaving it by an error leaves none.
    Raises OutputError, at the start if the folder is not writable.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.frames = 0
        self._part = self.path.with_name(f".{self.path.name}.part-{os.getpid()}")
        self._chunks: list[Tensor] = []
        self._write(b"")

    def append(self, latents: Tensor) -> None:
        self._chunks.append(latents.cpu())
        self.frames += latents.shape[1]

    def __enter__(self) -> LatentWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._write(save({"latents": torch.cat(self._chunks, dim=1).contiguous()}))
            os.replace(self._part, self.path)
        else:
            self._part.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        try:
            self._part.write_bytes(data)
        except OSError as error:
            if self._part.is_file():
                self._part.unlink()
            raise OutputError(
                f"cannot write {self.path.name}",
                where=str(self.path),
                because=error.strerror or str(error),
                fix="choose a path in a folder that you may write to",
            ) from error
