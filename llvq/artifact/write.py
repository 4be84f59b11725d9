"""Writing a box: all of it, or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors.torch
import torch

from llvq import canonical_json
from llvq.artifact import manifest as rules
from llvq.artifact.files import files_in, sha256_of
from llvq.artifact.place import take_place
from llvq.artifact.read import check_graphs
from llvq.errors import OutputError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class BoxWriter:
    """A box in the making, in a hidden folder beside `path`, renamed into place by `finish`.

        with BoxWriter("model.llvq") as writer:
            writer.add_json("graphs/denoise.json", graphs.dump(gm))
            artifact_id = writer.finish(fields)

    Leaving the block by an exception removes everything; what could not be written is OutputError.
    An existing `path` is refused, or with `overwrite` replaced once the new box is complete.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._part = self.path.with_name(f".{self.path.name}.part-{os.getpid()}")
        self._old = self.path.with_name(f".{self.path.name}.old-{os.getpid()}")
        self._finished = False

    def __enter__(self) -> BoxWriter:
        if os.path.lexists(self.path):
            self._check_replaceable()
        try:
            # Only a dead process that had our id can have left one.
            shutil.rmtree(self._part, ignore_errors=True)
            self._part.mkdir()
        except OSError as error:
            raise self._output_error(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
        if isinstance(error, OSError) and self._is_ours(error):
            raise self._output_error(error) from error
        assert error is not None or self._finished, "finish() was not called"

    def add_json(self, name: str, document: Any) -> None:
        """Write `graphs/denoise.json` in canonical JSON. ValueError if it holds anything else."""
        self._place(name).write_bytes(canonical_json.dumps(document))

    def add_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a safetensors file held in memory; for large weights `adopt` the folder."""
        # safetensors refuses views of shared storage: each tensor gets its own.
        owned = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, tensor in sorted(tensors.items())
        }
        self._place(name).write_bytes(safetensors.torch.save(owned))

    def add_bytes(self, name: str, data: bytes) -> None:
        """Write a file as it is, such as a kernel."""
        self._place(name).write_bytes(data)

    def adopt(self, folder: str) -> Path:
        """The folder `weights` (or `report`) of the box, for the caller to write files into."""
        assert folder.split("/")[0] in (*rules.FOLDERS, rules.REPORT), folder
        path = self._part / folder
        path.mkdir(parents=True, exist_ok=True)
        return path

    def link(self, name: str, source: str | Path) -> None:
        """Put a finished file into the box: a hard link where the disk allows it, else a copy."""
        place = self._place(name)
        resolved = Path(source).resolve()
        try:
            os.link(resolved, place)
        except OSError:
            shutil.copyfile(resolved, place)

    def finish(self, fields: Mapping[str, Any]) -> str:
        """Hash the files, write the manifest last, rename the box into place; gives its id.

        `fields` are those of the manifest without `format` and `files`. Raises ArtifactError for
        fields or files that `open_box` would refuse.
        """
        manifest = {**fields, "format": rules.FORMAT, "files": self._file_table()}
        where = str(self.path)
        rules.check_fields(manifest, where=where)
        rules.check_file_table(manifest, where=where)
        check_graphs(self._part, manifest)
        data = canonical_json.dumps(manifest)
        (self._part / rules.SEAL).write_bytes(rules.seal(data))
        (self._part / rules.MANIFEST).write_bytes(data)
        take_place(self._part, self.path, self._old)
        self._finished = True
        return hashlib.sha256(data).hexdigest()

    def _check_replaceable(self) -> None:
        # Overwriting deletes a folder with all that is in it: it had better be a box.
        is_box = (self.path / rules.MANIFEST).is_file() and not self.path.is_symlink()
        if self._overwrite and is_box:
            return
        raise OutputError(
            f"{self.path} is there already",
            where=str(self.path),
            because="a box is not overwritten unless asked for"
            if is_box
            else "it is not a box, and only a box is overwritten",
            fix="add --force (overwrite=True in Python), or name another path"
            if is_box
            else "name another path",
        )

    def _place(self, name: str) -> Path:
        assert rules.is_box_path(name) or name.startswith(rules.REPORT + "/"), name
        path = self._part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _file_table(self) -> dict[str, Any]:
        return {
            name: {"sha256": sha256_of(self._part / name), "bytes": entry.stat().st_size}
            for name, entry in files_in(self._part)
            if not name.startswith(rules.REPORT + "/")
        }

    def _is_ours(self, error: OSError) -> bool:
        """Not a checkpoint that could not be read: only what concerns the folder we write."""
        if isinstance(error, OutputError):
            return False
        paths = (str(error.filename), str(error.filename2))
        ours = any(path.startswith((str(self._part), str(self._old))) for path in paths)
        return ours or error.errno in _DISK_ERRORS

    def _output_error(self, error: OSError) -> OutputError:
        return OutputError(
            "the box could not be written",
            where=str(self.path),
            because=error.strerror or str(error),
            fix="free space there, or name a folder you may write to; nothing was left behind",
        )
