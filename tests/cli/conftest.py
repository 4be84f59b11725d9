"""One quantized model for all command line tests, made as a user makes it: by typing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llvq.checkpoints.random import tiny_config, write_random_checkpoint
from llvq.cli.main import app
from llvq.models.config import ModelConfig

SIZE = ("--height", "64", "--width", "96")


@dataclass(frozen=True)
class Typed:
    """What typing a command gave, and the path it wrote."""

    path: Path
    stdout: str
    stderr: str


def small_config(*, whole: bool) -> ModelConfig:
    """A denoiser that compiles in a second or two; `whole` adds VAE, text encoder, tokenizer."""
    config = tiny_config()
    dit = replace(config.dit, num_layers=1, dim=64, num_heads=2, ffn_dim=128, text_len=48)
    if not whole:
        return replace(config, dit=dit, vae=None, text=None)
    assert config.vae is not None and config.text is not None
    vae = replace(config.vae, dim=8, dec_dim=8, num_res_blocks=1)
    return replace(config, dit=dit, vae=vae, text=replace(config.text, num_layers=1))


def type_command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`llvq WORDS` in a process of its own."""
    command = [sys.executable, "-m", "llvq", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`llvq WORDS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_random_checkpoint(folder, small_config(whole=True), seed=0)


@pytest.fixture(scope="session")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one layer with nothing beside it: the quickest there is."""
    folder = tmp_path_factory.mktemp("denoiser")
    return write_random_checkpoint(folder, small_config(whole=False), seed=0)


@pytest.fixture(scope="session")
def program(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    folder = tmp_path_factory.mktemp("work")
    done = type_command("quantize", str(checkpoint), *SIZE, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Typed(folder / "model.nvfp4", done.stdout, done.stderr)


@pytest.fixture(scope="session")
def box(program: Typed) -> Typed:
    folder = program.path.parent
    done = type_command("export", "model.nvfp4", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Typed(folder / "model.llvq", done.stdout, done.stderr)
