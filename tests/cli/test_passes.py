"""`llvq passes`: the list, the explanation, and the search for a bad rewrite."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch.fx import Node
from typer.testing import Result

from llvq.passes import PIPELINE, fuse_gelu_quantize
from llvq.passes.builder import Builder
from llvq.pattern import Match
from tests.cli.conftest import SIZE

Invoke = Callable[..., Result]
RULES = sys.modules[fuse_gelu_quantize.__module__].RULES


def test_the_list_has_a_line_for_every_pass(invoke: Invoke) -> None:
    rows = json.loads(invoke("passes", "--json").stdout)
    assert [row["name"] for row in rows] == [step.name for step in PIPELINE]
    assert all(row["what it does"].endswith(".") for row in rows)
    shown = invoke("passes").stdout
    assert all(step.name in shown for step in PIPELINE)


def test_a_pass_is_explained_under_its_name(invoke: Invoke) -> None:
    shown = invoke("passes", "fuse-norm-quantize").stdout
    assert shown == invoke("passes", "explain", "fuse-norm-quantize").stdout
    assert shown.startswith("fuse-norm-quantize: ")
    assert "rule norm-modulate-quantize" in shown
    document = json.loads(invoke("passes", "fuse-norm-quantize", "--json").stdout)
    assert document["numerics"] == "exact"


def test_an_unknown_pass_names_the_nearest(invoke: Invoke) -> None:
    result = invoke("passes", "fuse-liner")
    assert result.exit_code == 2
    assert "did you mean 'fuse-linear'?" in result.stderr


def bad_gelu(found: Match, b: Builder) -> Node:
    """The exact GELU takes the place of the tanh one."""
    return RULES[0].build(replace(found, bound={**found.bound, "approximate": "none"}), b)


def test_bisect_finds_a_planted_rewrite(
    invoke: Invoke, denoiser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[fuse_gelu_quantize.__module__]
    monkeypatch.setattr(module, "RULES", (replace(RULES[0], build=bad_gelu),))
    check = "import pathlib, sys; sys.exit('\"none\"' in pathlib.Path(sys.argv[1]).read_text())"
    command = ("--", sys.executable, "-c", check, "{program}/graphs/denoise.json")
    result = invoke("passes", "bisect", denoiser, *SIZE, "--json", *command)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["rewrite"]["pass_name"] == "fuse-gelu-quantize"
    assert document["rewrite"]["rule"] == "gelu-quantize"
    assert document["rewrite"]["module"].startswith("dit.blocks.0.ffn")
    assert document["rewrite"]["source"].startswith("dit.py:")
    assert 0 < document["number"] < document["total"]
    assert "rewrites: bad" in result.stderr and "rewrites: good" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_bisect_needs_a_command_that_looks_at_the_result(invoke: Invoke, denoiser: Path) -> None:
    result = invoke("passes", "bisect", denoiser, *SIZE, "--", "true")
    assert result.exit_code == 2
    assert "names neither {program} nor {box}" in result.stderr
