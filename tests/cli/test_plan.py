"""`llvq plan` from a shell: tables, JSON, the verdict on memory, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llvq import compiler
from llvq.box import write_program
from llvq.cli.plan import BUILTIN, plan
from llvq.compiler import Compiled
from llvq.errors import LlvqError, RecipeError, TargetError
from llvq.graphs.weight_groups import Limits
from llvq.models.config import PUBLISHED, ModelConfig
from llvq.sources import DictSource

APP = typer.Typer()
APP.command()(plan)


@pytest.fixture
def _compiled_already(compiled_whole: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "compile_model", lambda config, recipe: compiled_whole)


@pytest.fixture
def _denoiser_compiled_already(compiled_nvfp4: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "compile_model", lambda config, recipe: compiled_nvfp4)


@pytest.fixture(scope="module")
def program(
    compiled_whole: Compiled,
    whole_config: ModelConfig,
    make_whole_weights: Callable[[ModelConfig], DictSource],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("plan") / "model.nvfp4"
    write_program(compiled_whole, make_whole_weights(whole_config), path)
    return path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(APP, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def refused(kind: type[LlvqError], *arguments: str) -> LlvqError:
    with pytest.raises(kind) as caught:
        CliRunner().invoke(APP, arguments, catch_exceptions=False)
    return caught.value


@pytest.mark.usefixtures("_denoiser_compiled_already")
def test_tables_of_a_known_model() -> None:
    text = run("--model", "tiny", "--target", "sm_90a", "--memory", "80")
    assert "sm_90a, numerics w4a8\n" in text
    for words in ("fp8 values", "KV pages", "total at the peak", "4 times per chunk", "*head.head"):
        assert words in text
    spare = json.loads(run("--model", "tiny", "--target", "sm_90a", "--memory", "80", "--json"))
    assert f"80 GiB fits, with {spare['memory']['spare'] / 2**30:.2f} GiB" in text


@pytest.mark.usefixtures("_denoiser_compiled_already")
def test_a_gpu_gets_a_roofline_that_says_what_it_is() -> None:
    text = run("--model", "tiny", "--target", "sm_100a")
    assert text.count("estimate, not a measurement") >= 3 and "HGX B200" in text
    document = json.loads(run("--model", "tiny", "--target", "sm_100a", "--json"))["roofline"]
    assert document["label"] == "estimate, not a measurement" and document["assumptions"]
    (estimate,) = document["estimates"]
    assert estimate["product"]["source"].startswith("NVIDIA Blackwell datasheet")
    assert sum(op["seconds"] for op in estimate["ops"]) == pytest.approx(
        estimate["stages"]["denoise"]
    )
    assert "estimate" not in run("--model", "tiny", "--target", "cpu")


def test_every_published_model_can_be_planned() -> None:
    assert (*PUBLISHED, "tiny") == BUILTIN


@pytest.mark.usefixtures("_compiled_already")
def test_json_has_exact_bytes_and_says_what_is_missing() -> None:
    document = json.loads(run("--model", "tiny", "--target", "cpu", "--memory", "0", "--json"))
    encoder = document["weights"].pop("text encoder: kept bfloat16")
    weights = sum(document["weights"].values()) - document["image"]
    held = weights + sum(document["state"].values())
    assert document["generating"] == held + sum(document["workspace"].values())
    assert document["total"] == max(document["encoding"], document["generating"])
    assert document["encoding"] > encoder
    assert document["memory"] == {"bytes": 0, "fits": False, "spare": -document["total"]}


@pytest.mark.usefixtures("_denoiser_compiled_already")
def test_low_memory_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Limits(sizes=(2**13,), smallest=256)
    monkeypatch.setattr("llvq.plan.Limits", lambda: small)
    text = run("--model", "tiny", "--target", "cpu", "--low-memory", "--memory", "1")
    for words in ("weights on the device, and room for others", "stay in the memory of the host",
                  "copied per call, estimate", "ms at 50 GB/s (PCIe 5.0)",
                  "an estimate, not a measurement"):  # fmt: skip
        assert words in text
    assert "estimate" not in run("--model", "tiny", "--target", "cpu", "--memory", "1")


def test_a_program_is_planned_from_its_files(program: Path) -> None:
    document = json.loads(run(str(program), "--target", "cpu", "--json"))
    assert document["numerics"] == "w4a4-emulated" and document["memory"] is None
    assert document["kv"]["bytes_per_chunk"] * document["kv"]["slots"] == document["kv"]["nbytes"]


def test_what_is_refused(program: Path) -> None:
    refused(RecipeError, str(program), "--height", "64", "--width", "96")
    refused(RecipeError, "--height", "64")
    assert "longlive2-5b" in str(refused(RecipeError, "--model", "longlive2-5B!"))
    refused(TargetError, "--target", "sm_80")
