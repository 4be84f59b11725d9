"""`llvq quantize --calibrate`: what may be typed together, and the whole way to a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import Result

from llvq.cli.calibrate_options import chosen
from llvq.errors import RecipeError
from tests.cli.conftest import SIZE, small_config

Invoke = Callable[..., Result]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--calibrate", "modelopt:awq_lit"), "did you mean 'modelopt:awq_lite'?"),
        (("--calibrate", "int8"), "modelopt:max, modelopt:awq_lite"),
        (("--calibrate-chunks", "3"), "--calibrate-chunks was given without --calibrate"),
        (("--calibrate-seed", "0"), "--calibrate-seed was given without --calibrate"),
        (("--calibrate-size", "64x64"), "--calibrate-size was given without --calibrate"),
        (("--work", "w"), "--work was given without --calibrate"),
        (("--calibrate", "modelopt:max", "--calibration", "f"), "were both given"),
        (("--calibrate", "modelopt:max", "--calibrate-size", "64"), "64 is not a size"),
        (("--calibrate", "modelopt:max", "--calibrate-size", "0x64"), "0x64 is not a size"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_opened(
    invoke: Invoke, words: tuple[str, ...], said: str
) -> None:
    result = invoke("quantize", "nothing.pt", *words)
    assert result.exit_code == 2 and said in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--calibrate-device", "tpu"), "cannot calibrate on 'tpu'"),
        (("--calibrate-prompts", "none.txt"), "none.txt is not a file of prompts"),
        (("--calibrate-size", "100x64"), "do not divide"),
        (("--work", "no/such/folder"), "cannot be written"),
        (("--recipe", "bf16"), "leaves nothing to calibrate"),
        (("--calibrate-seed", str(2**64)), "seed 18446744073709551616 is too large"),
    ],
)
def test_what_cannot_be_run_is_refused(
    invoke: Invoke, checkpoint: Path, words: tuple[str, ...], said: str
) -> None:
    result = invoke("quantize", checkpoint, *SIZE, "--calibrate", "modelopt:max", *words)
    assert result.exit_code in (2, 4, 5), result.output
    assert said in result.stderr


def test_a_model_without_an_encoder_needs_embeddings(invoke: Invoke, denoiser: Path) -> None:
    result = invoke("quantize", denoiser, *SIZE, "--calibrate", "modelopt:max")
    assert result.exit_code == 2
    assert "no text encoder to calibrate with" in result.stderr


def test_defaults_are_those_of_the_request() -> None:
    found = chosen("modelopt:max", None, None, Path("a.nvfp4"), size="256x448", chunks=None)
    assert found.request is not None and found.work == Path("a.nvfp4.calibration")
    assert (found.request.size, found.request.chunks, found.request.seed) == ((256, 448), 3, 0)
    with pytest.raises(RecipeError, match="not a size"):
        chosen("modelopt:max", None, None, Path("a"), size="big")


def test_calibrate_once_and_quantize_twice(invoke: Invoke, denoiser: Path, tmp_path: Path) -> None:
    dit = small_config(whole=False).dit
    embeds = {"prompt_embeds": torch.ones(1, dit.text_len, dit.text_dim)}
    save_file(embeds, tmp_path / "p.safetensors")
    words = ("--calibrate", "modelopt:max", "--calibrate-prompts", "p.safetensors")
    short = ("--calibrate-chunks", "1", "--calibrate-size", "32x32")
    first = invoke("quantize", denoiser, *SIZE, *words, *short, "-o", "one.nvfp4", "--json")
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["program"] == "one.nvfp4"
    manifest = json.loads((tmp_path / "one.nvfp4" / "manifest.json").read_text())
    made = manifest["calibration"]
    assert (made["config"]["name"], made["videos"], made["chunks"]) == ("max", 1, 1)
    again = invoke("quantize", denoiser, *SIZE, *words, *short, "-o", "one.nvfp4", "--force")
    assert again.exit_code == 0 and "finished before, reused" in again.stderr
    facts = tmp_path / "one.nvfp4.calibration" / "calibration.safetensors"
    second = invoke("quantize", denoiser, *SIZE, "--calibration", facts, "-o", "two.nvfp4")
    assert second.exit_code == 0, second.stderr
    one, two = ((tmp_path / n / "manifest.json").read_bytes() for n in ("one.nvfp4", "two.nvfp4"))
    assert one == two
    assert "max of ModelOpt 0.47" in invoke("inspect", tmp_path / "two.nvfp4").stdout
