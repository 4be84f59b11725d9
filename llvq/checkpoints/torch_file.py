"""Tensors of a file written by `torch.save`. The zip kind is mapped, not read.

The pickle inside is only ever opened with weights_only=True: a file that wants to run code is
refused, and so is one that declares more than it can hold. Every page of a map that was ever
touched stays resident, so the file is mapped anew after each REMAP_BYTES that were read.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from llvq.errors import CheckpointError
from llvq.sources import TensorSpec

ZIP_MAGIC = b"PK\x03\x04"
# A file of torch < 1.6 cannot be mapped, so opening it reads all of it.
LEGACY_LIMIT_BYTES = 2 * 2**30
REMAP_BYTES = 2**28
# A published checkpoint has about a thousand tensors, a training one with its optimizer ten times
# as many, and its pickle takes some hundred bytes for each.
MAX_NAMES = 1_000_000
MAX_PICKLE_BYTES = 2**28
# Of {generator, generator_optimizer, step}: a map is not read where nobody asks, but named.
OPTIMIZER = re.compile(r"\w*optimizer", re.ASCII)
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
    zipfile.BadZipFile,
)


class TorchSource:
    """A TensorSource over the dicts of the file: {"a": {"b": tensor}} has the name `a.b`.

    `metadata` holds the strings and numbers of the file under names of the same kind. What an
    optimizer has kept is left out.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, (path,)
        self.metadata: dict[str, str | int | float] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._touched, self._visited = 0, 0
        self._file_bytes = path.stat().st_size
        self._is_zip = _is_zip(path)
        self._open()
        self._specs = {
            name: TensorSpec(tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        }
        if not self._specs:
            raise CheckpointError(
                f"{path.name} holds no named tensors",
                where=str(path),
                because="a checkpoint is a dict from names to tensors",
                fix="name the file that holds the weights",
            )

    def _open(self) -> None:
        self._tensors, self.metadata, self._visited = {}, {}, 0
        try:
            self._flatten(_load(self.path, mapped=self._is_zip), prefix="")
        except DAMAGE as error:
            if isinstance(error, CheckpointError):
                raise
            raise _refusal(self.path, error) from error

    def _flatten(self, value: object, *, prefix: str) -> None:
        if not isinstance(value, Mapping):
            return
        for key, item in value.items():
            # A pickle may name one dict twice, and within it again: few bytes, endless names.
            self._visited += 1
            if self._visited > MAX_NAMES:
                raise self._refused(f"it has more than {MAX_NAMES} names")
            if not isinstance(key, str) or (not prefix and OPTIMIZER.fullmatch(key)):
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
        if name in self._tensors or not plain or tensor.is_quantized:
            raise CheckpointError(
                f"{name} is not a plain tensor, or is there twice",
                where=str(self.path),
                because="llvq reads dense CPU tensors, each name once",
                fix="re-save the checkpoint as one flat dict of dense tensors",
            )
        if (declared := tensor.numel() * tensor.itemsize) > self._file_bytes:
            because = f"{name} has {declared} bytes, the whole file {self._file_bytes}"
            raise self._refused(because)
        self._tensors[name] = tensor.detach()

    def _refused(self, because: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} declares more than it can hold",
            where=str(self.path),
            because=because,
            fix="re-save the checkpoint as one flat dict of dense tensors, none of them expanded",
        )

    def names(self) -> Sequence[str]:
        return tuple(self._specs)

    def spec(self, name: str) -> TensorSpec:
        return self._specs[name]

    def read(self, name: str) -> torch.Tensor:
        return self._mapped(name, self._specs[name].nbytes).contiguous()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        spec = self._specs[name]
        row_bytes = spec.nbytes // max(1, spec.shape[0])
        return self._mapped(name, row_bytes * (stop - start))[start:stop].contiguous()

    def packed(self, name: str) -> None:
        """A file knows tensors alone: what they mean together is for the layouts to say."""
        return None

    def _mapped(self, name: str, nbytes: int) -> torch.Tensor:
        """The tensor `name`, of which `nbytes` are about to be read."""
        self._touched += nbytes
        if self._is_zip and self._touched > REMAP_BYTES:
            self._touched = nbytes
            self._open()
        tensor = self._tensors.get(name)
        if tensor is not None and tuple(tensor.shape) == self._specs[name].shape:
            return tensor
        raise CheckpointError(
            f"{self.path.name} has changed while it was read",
            where=str(self.path),
            because=f"{name} is not as it was when the file was opened",
            fix="run the command again, and write no file that is being read",
        )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _load(path: Path, *, mapped: bool) -> object:
    size = path.stat().st_size
    if not mapped and size > LEGACY_LIMIT_BYTES:
        raise CheckpointError(
            f"{path.name} is in the format of torch before 1.6, or not a checkpoint",
            where=str(path),
            because=f"that format cannot be mapped, and {size / 2**30:.1f} GiB is too much to read",
            fix='convert it once: python -c "import torch; torch.save(torch.load('
            f"'{path}', weights_only=True, map_location='cpu'), '{path.with_suffix('.pt')}')\"",
        )
    if mapped:
        _check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _check_archive(path: Path) -> None:
    """All that is read whole must be small, and nothing compressed, as torch.save writes it."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        read_whole = "/data/" not in entry.filename
        if entry.compress_type != zipfile.ZIP_STORED or (
            read_whole and entry.file_size > MAX_PICKLE_BYTES
        ):
            raise CheckpointError(
                f"{path.name} is not an archive as torch.save writes it",
                where=str(path),
                because=f"{entry.filename[:80]} is compressed, or has {entry.file_size} bytes",
                fix="re-save the checkpoint with torch.save",
            )


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
    # What pickle says of a file that never was one (KeyError: 101) helps nobody.
    other = not _is_zip(path) and isinstance(inner, KeyError | pickle.UnpicklingError)
    return CheckpointError(
        f"{path.name} is damaged or not a torch checkpoint",
        where=str(path),
        because="it is neither a zip archive nor a pickle, as torch.save writes"
        if other
        else f"{type(inner).__name__}: {first}",
        fix="download or copy it again, and compare its size and sha256 with the publisher's",
    )
