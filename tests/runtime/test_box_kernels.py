"""A box for a GPU: exported without one, refused where it cannot run, bound where it can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llvq import checks, graphs
from llvq.artifact.kernels import KernelTable, read_table
from llvq.backends.triton.sources import sources_digest
from llvq.errors import ArtifactError, KernelError, TargetError
from llvq.runtime import box_kernels, device, load
from llvq.runtime.bind import BoundOp
from llvq.runtime.session import Prompt, Session
from tests.backends import toy_ops
from tests.backends.triton.interpreter import Interpreted

from .conftest import Forger

pytestmark = pytest.mark.usefixtures("toy_kernels")


@pytest.fixture
def forged(gpu_box: Path, tmp_path: Path) -> Forger:
    shutil.copytree(gpu_box, tmp_path / "m.llvq")
    return Forger(tmp_path / "m.llvq")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[KernelTable]:
    """A CPU that passes for an H100: kernels are interpreted. Keeps the tables that are loaded."""
    tables: list[KernelTable] = []

    def interpret(box: Any, table: KernelTable, *_: object) -> Interpreted:
        tables.append(table)
        return Interpreted()

    for module in (load, device):
        monkeypatch.setattr(module, "obstacles", dict)
        monkeypatch.setitem(device.TARGET_DEVICES, "sm_90a", "cpu")
    monkeypatch.setattr(box_kernels, "needs_kernels", lambda box: True)
    monkeypatch.setattr(load, "needs_kernels", lambda box: True)
    monkeypatch.setattr(box_kernels, "load_kernels", interpret)
    return tables


def opened(path: Path) -> Any:
    return load.open_checked(path, kinds=("box",))


def test_the_manifest_says_what_runs_each_op_and_what_was_compiled(gpu_box: Path) -> None:
    manifest = opened(gpu_box).manifest
    assert (manifest["target"], manifest["numerics"]) == ("sm_90a", "w4a8")
    made = manifest["implementations"]
    assert made["llvq.fp8_linear.default"].keys() == {"torch"}
    assert made["llvq.gate_residual.default"].keys() == {"triton"}
    assert "llvq.nvfp4_linear.default" not in {**made, **manifest["ops"]}
    assert manifest["kernels"]["chip"] == "sm_90a"
    assert manifest["kernels"]["sources"] == sources_digest()
    table = read_table(opened(gpu_box), "sm_90a")
    assert manifest["kernels"]["count"] == len(table.kernels) > 0
    assert {f"kernels/sm_90a/{name}.cubin" for name in table.kernels} < manifest["files"].keys()
    assert "activations-to-fp8" in [row["name"] for row in manifest["passes"]]


def test_check_vectors_are_those_of_the_lowered_graphs_by_the_reference(gpu_box: Path) -> None:
    box = opened(gpu_box)
    assert "checks/denoise.safetensors" in box.manifest["files"]
    graph = graphs.load(box.graph("denoise"), device="meta")
    assert any("fp8_linear" in str(node.target) for node in graph.graph.nodes)


def test_without_its_gpu_a_box_is_refused_before_a_weight_is_hashed(gpu_box: Path) -> None:
    with pytest.raises(ArtifactError, match="the box is for target sm_90a") as caught:
        load.load(gpu_box)
    assert "and sm_90a is H100, H200" in (caught.value.because or "")
    with pytest.raises(TargetError, match="target sm_90a cannot run here"):
        load.executable(opened(gpu_box), "cpu")


def test_kernels_of_another_llvq_are_refused(forged: Forger, machine: Any) -> None:
    forged.manifest(lambda m: m["kernels"].update(sources="0" * 64))
    with pytest.raises(KernelError, match="of another version of llvq") as caught:
        load.load(forged.path)
    assert caught.value.fix == "llvq export PROGRAM --target sm_90a, with the llvq that runs it"


@pytest.mark.parametrize(
    "kernels", [None, {"chip": "sm_100a", "count": 1, "triton": "3.6.0", "sources": "0" * 64}]
)
def test_a_box_for_a_gpu_has_kernels_for_it(forged: Forger, machine: Any, kernels: Any) -> None:
    forged.manifest(lambda m: m.update(kernels=kernels))
    with pytest.raises((ArtifactError, KernelError)):
        load.load(forged.path)


def test_a_bound_box_computes_what_its_check_vectors_say(gpu_box: Path, machine: Any) -> None:
    model = load.load(gpu_box)
    assert len(machine) == 1
    nodes = model.stage("denoise").graph.graph.nodes
    bound = {node.target.op for node in nodes if isinstance(node.target, BoundOp)}
    assert {"fp8_linear", "gate_residual", "paged_attention_fp8"} & bound
    results = checks.replay(model, opened(gpu_box))
    assert results and all(result.passed for result in results)


def test_weights_of_a_bound_box_are_widened_once(gpu_box: Path, machine: Any) -> None:
    model = load.load(gpu_box)
    stages = [model.stage(name) for name in ("denoise", "refresh")]
    for stage in stages:
        assert not [n for n in stage.graph.graph.nodes if "widen" in str(n.target)]
        assert not [n for n in graphs.weights(stage.graph) if n.endswith(".codes")]
    denoise, refresh = (dict(stage.graph.named_buffers()) for stage in stages)
    shared = [n for n in denoise.keys() & refresh.keys() if n.startswith("folded_")]
    assert shared and all(denoise[n].data_ptr() == refresh[n].data_ptr() for n in shared)


def test_a_bound_box_makes_a_video(gpu_box: Path, machine: Any) -> None:
    model = load.load(gpu_box)
    facts = model.facts
    prompt = Prompt(torch.ones(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype))
    chunks = list(Session(model, [prompt] * 2, seed=3, latents_only=True))
    assert all(chunk.latents.isfinite().all() for chunk in chunks)


def test_a_box_whose_kernels_are_wrong_does_not_load(
    gpu_box: Path, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = lambda launch, x, y, gate: torch.zeros_like(x)  # noqa: E731
    monkeypatch.setitem(toy_ops.OPS, "gate_residual", wrong)
    with pytest.raises(KernelError, match=r"llvq\.gate_residual computes something else here"):
        load.load(gpu_box)
    load.executable(opened(gpu_box), "cpu", stages=("condition",))
