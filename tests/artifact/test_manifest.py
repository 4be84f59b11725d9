from __future__ import annotations

import json

import pytest

from llvq.artifact.manifest import FORMAT, check_versions, is_box_path, parse
from llvq.errors import ArtifactError


@pytest.mark.parametrize(
    "path", ["graphs/denoise.json", "kernels/sm_90a/gemm-1.cubin", "tokenizer/a+b=c@1.model"]
)
def test_paths_of_a_box(path: str) -> None:
    assert is_box_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "graphs",
        "graphs/",
        "/graphs/a.json",
        "../graphs/a.json",
        "graphs/../../a.json",
        "graphs/./a.json",
        "graphs//a.json",
        "graphs\\a.json",
        "graphs/..\\..\\a.json",
        "graphs/.hidden",
        "graphs/a\0.json",
        "graphs/a.json\n",
        "graphs/\u00e9.json",
        "C:/graphs/a.json",
        "weights/C:a",
        "report/a.md",
        "manifest.json",
        "Graphs/a.json",
    ],
)
def test_paths_that_are_not_of_a_box(path: str) -> None:
    assert not is_box_path(path)


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("2.10.1", False),
        ("2.11.0", True),
        ("2.13.1+cu130", True),
        ("2.14.0.dev2", False),
        ("3.0", False),
    ],
)
def test_torch_ranges(version: str, fits: bool) -> None:
    manifest = {"versions": {"torch": ">=2.11,<2.14"}}
    if fits:
        check_versions(manifest, torch_version=version, where="")
        return
    with pytest.raises(ArtifactError) as caught:
        check_versions(manifest, torch_version=version, where="")
    assert version in str(caught.value) and 'pip install "torch>=2.11,<2.14"' in str(caught.value)


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.0, True, [1]])
def test_other_format_versions(version: object) -> None:
    text = f'{{"format":{{"name":"llvq-box","version":{json.dumps(version)}}}}}'
    with pytest.raises(ArtifactError, match="format version") as caught:
        parse(text.encode(), where="box")
    assert f"reads version {FORMAT['version']}" in str(caught.value)
