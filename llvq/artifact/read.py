"""Opening a box: every check in a fixed order, one sentence each, before anything is built."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llvq import canonical_json, graphs
from llvq.artifact import files
from llvq.artifact import manifest as rules
from llvq.artifact.manifest import damaged
from llvq.errors import ArtifactError


@dataclass(frozen=True)
class Box:
    """A box whose checks have passed. `id` is the sha256 of its manifest."""

    path: Path
    manifest: Mapping[str, Any]
    id: str

    def file(self, name: str) -> Path:
        """The path of a listed file, `checks/denoise.safetensors`."""
        if name not in self.manifest["files"]:
            raise ArtifactError(
                f"the box has no file {name!r}",
                where=str(self.path),
                because="its manifest lists no such file",
                fix=f"llvq inspect {self.path}",
            )
        return self.path / name

    def graph(self, name: str) -> Any:
        """The document of `graphs/<name>.json`, for `llvq.graphs.load`."""
        return canonical_json.loads(self.file(f"graphs/{name}.json").read_bytes())

    def tensors(self, *, device: torch.device | str = "cpu") -> Mapping[str, torch.Tensor]:
        """The weights by name, each read when it is asked for (mapped, not copied, on the CPU)."""
        return Tensors([self.path / n for n in self._shards()], device=device)

    def weight_files(self, names: Collection[str]) -> list[str]:
        """The files that hold any of these weights. Reads their headers alone."""
        wanted, found = set(names), []
        for file in self._shards():
            if not wanted.isdisjoint(Tensors([self.path / file], device="cpu")):
                found.append(file)
        return found

    def _shards(self) -> list[str]:
        files = sorted(self.manifest["files"])
        return [n for n in files if n.startswith("weights/") and n.endswith(".safetensors")]


class Tensors(Mapping[str, torch.Tensor]):
    """Tensors of several safetensors files, read one by one."""

    def __init__(self, paths: Collection[Path], *, device: torch.device | str) -> None:
        self._device = str(device)
        self._file_of: dict[str, Any] = {}
        for path in paths:
            with _reading(path):
                file = safe_open(path, framework="pt", device=self._device)
            for name in file.keys():  # noqa: SIM118 (safe_open is no Mapping)
                if name in self._file_of:
                    raise damaged(f"tensor {name} is in two files", where=str(path))
                self._file_of[name] = file

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file_of[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def open_box(
    path: str | Path,
    *,
    known_ops: Mapping[str, str],
    kinds: Collection[str] = rules.KINDS,
    targets: Collection[str] | None = None,
    reasons: Mapping[str, str] | None = None,
    hash_weights: bool = True,
) -> Box:
    """Check a box and give it back; no graph is built, nothing in it is executed.

    The order is format, kind and target, versions, operators, files, bytes; the first that fails
    raises one ArtifactError. `known_ops` maps operator names to schemas, as
    `graphs.installed_schemas()` does. `targets` are those the caller can run, None for any;
    `reasons` say why it cannot run others. Without `hash_weights` the weights are checked by size
    alone (their sha256 takes about a second for each GB); all else is hashed.
    """
    root = Path(path)
    where = str(root)
    with _reading(root):
        data = _manifest_bytes(root)
        manifest = rules.parse(data, where=where)
        _check_seal(root, data)
        rules.check_fields(manifest, where=where)
        rules.check_kind(manifest, kinds=kinds, targets=targets, reasons=reasons or {}, where=where)
        rules.check_versions(manifest, torch_version=torch.__version__, where=where)
        rules.check_ops(manifest, known_ops=known_ops, where=where)
        rules.check_file_table(manifest, where=where)
        files.check_files(root, manifest["files"])
        files.check_bytes(root, manifest["files"], skip_weights=not hash_weights)
        check_graphs(root, manifest)
    return Box(path=root, manifest=manifest, id=hashlib.sha256(data).hexdigest())


def check_graphs(root: Path, manifest: Mapping[str, Any]) -> None:
    """Every graph is well formed and calls only the operators that the manifest lists."""
    for name in sorted(n for n in manifest["files"] if n.startswith("graphs/")):
        try:
            used = graphs.ops_used(canonical_json.loads((root / name).read_bytes()))
        except ValueError as error:
            raise damaged(f"{name} is not JSON", where=str(root), because=str(error)) from error
        except ArtifactError as error:
            place = f"{root / name}   {error.where or ''}".rstrip()
            raise damaged(f"{name}: {error.what}", where=place, because=error.because) from error
        unlisted = sorted(used - manifest["ops"].keys())
        if unlisted:
            raise damaged(
                f"{name} calls {', '.join(unlisted[:5])}",
                where=str(root),
                because="the manifest does not list it among the operators",
            )


def _manifest_bytes(root: Path) -> bytes:
    path = root / rules.MANIFEST
    if path.is_symlink():
        raise damaged("manifest.json is a link", where=str(root), because="a box holds its files")
    size = path.stat().st_size
    if size > rules.MAX_MANIFEST_BYTES:
        raise damaged(
            f"manifest.json has {size} bytes",
            where=str(root),
            because=f"a manifest has at most {rules.MAX_MANIFEST_BYTES}",
        )
    return path.read_bytes()


def _check_seal(root: Path, data: bytes) -> None:
    path = root / rules.SEAL
    seal = rules.seal(data)
    if path.is_symlink() or path.stat().st_size != len(seal) or path.read_bytes() != seal:
        raise damaged(
            f"{rules.MANIFEST} is damaged",
            where=str(root),
            because=f"its sha256 is not the one in {rules.SEAL}",
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise damaged(
            f"{path.name} is no safetensors file", where=str(path), because=str(error)
        ) from error
    except OSError as error:
        raise ArtifactError(
            "the box cannot be read",
            where=str(path),
            because=str(error),
            fix="give the path of a folder that llvq quantize or llvq export has written",
        ) from error
