"""One door to tensors on disk, whatever wrote them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from llvq.checkpoints.readable_file import check_readable
from llvq.checkpoints.safetensors_file import SafetensorsSource
from llvq.checkpoints.shards import open_shards, refuse_one_shard
from llvq.checkpoints.torch_file import TorchSource
from llvq.errors import CheckpointError

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# What a file begins with, at which byte: safetensors have 8 bytes of length and then JSON.
ZIP, PICKLE, JSON = (0, b"PK\x03\x04"), (0, b"\x80"), (8, b"{")


def open_tensors(path: str | PathLike[str]) -> SafetensorsSource | TorchSource:
    """Open a checkpoint without reading its tensors.

    `path`: a safetensors file, a folder of safetensors shards, or a file of `torch.save`, whose
    nested dicts are flattened to names joined by dots. What the file begins with decides.
    Errors: CheckpointError if it is missing, empty, damaged, of another kind, or holds code.
    """
    path = Path(path)
    if path.is_dir():
        return open_shards(path)
    check_readable(path)
    refuse_one_shard(path)
    with path.open("rb") as file:
        start = file.read(9)
    # torch.load, too, takes a file of this name for safetensors.
    if _begins(start, JSON) or path.suffix == ".safetensors":
        return SafetensorsSource(path, (path,))
    if _begins(start, ZIP) or _begins(start, PICKLE) or path.suffix in TORCH_SUFFIXES:
        return TorchSource(path)
    raise CheckpointError(
        f"{path.name} is of no known checkpoint kind",
        where=str(path),
        because="it begins neither as safetensors do nor as what torch.save writes",
        fix="name a checkpoint file, or a folder of .safetensors shards",
    )


def _begins(start: bytes, mark: tuple[int, bytes]) -> bool:
    place, content = mark
    return start[place : place + len(content)] == content
