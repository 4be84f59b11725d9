"""The digest follows the sources of the package, and nothing else."""

from __future__ import annotations

import re
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from llvq.backends.triton import sources
from llvq.backends.triton.sources import sources_digest


def digest_of(folder: Path) -> str:
    """What a copy of the package gives."""
    spec = spec_from_file_location("copied_sources", folder / "sources.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.sources_digest())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "triton"
    shutil.copytree(Path(sources.__file__).parent, folder)
    return folder


def test_it_is_the_same_wherever_the_package_lies(copy: Path) -> None:
    assert re.fullmatch("[0-9a-f]{64}", sources_digest())
    assert digest_of(copy) == sources_digest()


@pytest.mark.parametrize("change", ["changed", "added", "removed", "renamed"])
def test_another_source_is_another_digest(copy: Path, change: str) -> None:
    file = copy / "launchers.py"
    if change == "changed":
        file.write_bytes(file.read_bytes() + b"\n")
    elif change == "added":
        (copy / "more.py").write_text("")
    elif change == "removed":
        file.unlink()
    else:
        file.rename(copy / "others.py")
    assert digest_of(copy) != sources_digest()
