"""One door to tensors on disk, whatever wrote them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from llvq.checkpoints.safetensors_file import SafetensorsSource, shards_of
from llvq.checkpoints.torch_file import TorchSource
from llvq.errors import CheckpointError

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
LFS_POINTER = b"version https://git-lfs"


def open_tensors(path: str | PathLike[str]) -> SafetensorsSource | TorchSource:
    """Open a checkpoint without reading its tensors.

    `path`: a `.safetensors` file, a folder of safetensors shards, or a file of `torch.save`
    (`.pt`, `.pth`, `.bin`, `.ckpt`), whose nested dicts are flattened to names joined by dots.
    Errors: CheckpointError if it is missing, empty, damaged, of another kind, or holds code.
    """
    path = Path(path)
    if path.is_dir():
        return SafetensorsSource(path, shards_of(path))
    check_is_file(path)
    if path.suffix == ".safetensors":
        return SafetensorsSource(path, (path,))
    if path.suffix in TORCH_SUFFIXES:
        return TorchSource(path)
    raise CheckpointError(
        f"{path.name} is of no known checkpoint kind",
        where=str(path),
        because=f"the name ends in neither .safetensors nor {', '.join(TORCH_SUFFIXES)}",
        fix="name a checkpoint file, or a folder of .safetensors shards",
    )


def check_is_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            "no checkpoint there",
            where=str(path),
            because="there is no such file or folder",
            fix=f"check the path: ls {path.parent}",
        )
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read",
            where=str(path),
            because=str(error.strerror),
            fix=f"check its permissions: ls -l {path}",
        ) from error
    if not start:
        raise CheckpointError(
            f"{path.name} is empty",
            where=str(path),
            because="the file has 0 bytes",
            fix="download or copy it again",
        )
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path.name} is a git-lfs pointer, not the weights",
            where=str(path),
            because="the repository was cloned without git-lfs",
            fix=f"cd {path.parent} && git lfs pull",
        )
