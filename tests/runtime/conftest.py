"""A box on disk, and how to change one so that its seal still fits."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llvq import canonical_json
from llvq.artifact.manifest import seal
from llvq.backends.base import CPU, find_target
from llvq.backends.implementations import TABLES
from llvq.box import export_box, write_program
from llvq.compiler import Compiled
from llvq.models.config import ModelConfig
from llvq.runtime.load import open_checked
from llvq.sources import DictSource


@dataclass(frozen=True)
class Forger:
    """Changes files of a box and seals it again, as one who means harm would."""

    path: Path

    def manifest(self, change: Callable[[dict[str, Any]], Any]) -> None:
        document = self._read("manifest.json")
        change(document)
        data = canonical_json.dumps(document)
        (self.path / "manifest.json").write_bytes(data)
        (self.path / "manifest.sha256").write_bytes(seal(data))

    def graph(self, stage: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        name = f"graphs/{stage}.json"
        document = self._read(name)
        change(document["nodes"])
        self.file(name, canonical_json.dumps(document))
        used = {n["target"] for n in document["nodes"] if n["op"] == "call_function"}
        aten = {target: "aten" for target in used if target.startswith("aten.")}
        self.manifest(lambda m: m["ops"].update(aten))

    def file(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.manifest(lambda m: m["files"].update({name: entry}))

    def _read(self, name: str) -> Any:
        return canonical_json.loads((self.path / name).read_bytes())


@pytest.fixture(scope="session")
def honest_box(
    tmp_path_factory: pytest.TempPathFactory,
    whole_config: ModelConfig,
    compiled_whole: Compiled,
    make_whole_weights: Callable[[ModelConfig], DictSource],
) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    write_program(compiled_whole, make_whole_weights(whole_config), folder / "m.nvfp4")
    program = open_checked(folder / "m.nvfp4", kinds=("program",))
    export_box(program, CPU, folder / "m.llvq")
    return folder / "m.llvq"


@pytest.fixture(scope="session")
def gpu_box(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: ModelConfig,
    compiled_nvfp4: Compiled,
    make_weights: Callable[[ModelConfig], DictSource],
) -> Path:
    """The denoiser alone for sm_90a in w4a8, with the kernels of tests/backends/toy_ops.py."""
    folder = tmp_path_factory.mktemp("gpu")
    write_program(compiled_nvfp4, make_weights(tiny_config), folder / "m.nvfp4")
    program = open_checked(folder / "m.nvfp4", kinds=("program",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TABLES, "triton", "tests.backends.toy_ops")
        export_box(program, find_target("sm_90a", "w4a8"), folder / "m.llvq")
    return folder / "m.llvq"


@pytest.fixture
def forger(honest_box: Path, tmp_path: Path) -> Forger:
    shutil.copytree(honest_box, tmp_path / "m.llvq")
    return Forger(tmp_path / "m.llvq")
