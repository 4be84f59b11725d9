"""Tensors of a file written by `torch.save`. The zip kind is mapped, not read.

The pickle inside is only ever opened with weights_only=True: a file that wants to run code is
refused.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from llvq.errors import CheckpointError
from llvq.weights import TensorSpec

ZIP_MAGIC = b"PK\x03\x04"
# A file of torch < 1.6 cannot be mapped, so opening it reads all of it.
LEGACY_LIMIT_BYTES = 2 * 2**30
FORBIDDEN_GLOBAL = re.compile(r"\bGLOBAL ([\w.]+)")
# What torch.load is known to raise on damaged bytes.
DAMAGE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    ImportError,
    OSError,
    struct.error,
)


class TorchSource:
    """A TensorSource over the dicts of the file: {"a": {"b": tensor}} has the name `a.b`.

    `metadata` holds the strings and numbers of the file under names of the same kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str | int | float] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        try:
            self._flatten(_load(path), prefix="")
        except DAMAGE as error:
            if isinstance(error, CheckpointError):
                raise
            raise _refusal(path, error) from error
        if not self._tensors:
            raise CheckpointError(
                f"{path.name} holds no named tensors",
                where=str(path),
                because="a checkpoint is a dict from names to tensors",
                fix="name the file that holds the weights",
            )

    def _flatten(self, value: object, *, prefix: str) -> None:
        if not isinstance(value, Mapping):
            return
        for key, item in value.items():
            if not isinstance(key, str):
                continue
            name = prefix + key
            if isinstance(item, torch.Tensor):
                self._add(name, item)
            elif isinstance(item, str | int | float):
                self.metadata[name] = item
            else:
                self._flatten(item, prefix=name + ".")

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if name not in self._tensors and plain and not tensor.is_quantized:
            self._tensors[name] = tensor.detach()
            return
        raise CheckpointError(
            f"{name} is not a plain tensor, or is there twice",
            where=str(self.path),
            because="llvq reads dense CPU tensors, each name once",
            fix="re-save the checkpoint as one flat dict of dense tensors",
        )

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def spec(self, name: str) -> TensorSpec:
        tensor = self._tensors[name]
        return TensorSpec(tensor.dtype, tuple(tensor.shape))

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].contiguous()


def _load(path: Path) -> object:
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    size = path.stat().st_size
    if not is_zip and size > LEGACY_LIMIT_BYTES:
        raise CheckpointError(
            f"{path.name} is in the format of torch before 1.6, or not a checkpoint",
            where=str(path),
            because=f"that format cannot be mapped, and {size / 2**30:.1f} GiB is too much to read",
            fix='convert it once: python -c "import torch; torch.save(torch.load('
            f"'{path}', weights_only=True, map_location='cpu'), '{path.with_suffix('.pt')}')\"",
        )
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _refusal(path: Path, error: BaseException) -> CheckpointError:
    # torch's own text advises weights_only=False, which is never the fix here; what went wrong
    # is in the error that it replaced.
    inner = error.__context__ or error
    first = (str(inner).splitlines() or ["no message"])[0]
    if wanted := FORBIDDEN_GLOBAL.search(str(inner)):
        return CheckpointError(
            f"{path.name} holds Python objects besides tensors",
            where=str(path),
            because=f"opening it would run {wanted[1]}, which may be any code",
            fix="save its tensors alone, where the file is trusted: "
            "torch.save(model.state_dict(), 'model.pt')",
        )
    return CheckpointError(
        f"{path.name} is damaged or not a torch checkpoint",
        where=str(path),
        because=f"{type(inner).__name__}: {first}",
        fix="download or copy it again, and compare its size and sha256 with the publisher's",
    )
