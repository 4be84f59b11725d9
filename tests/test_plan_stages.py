"""Stages as they run: lowered, folded, and with what launches of kernels allocate."""

from __future__ import annotations

import pytest

from llvq import plan_stages
from llvq.backends.base import CPU, find_target
from llvq.compiler import Compiled
from llvq.errors import KernelError
from llvq.lowered import lower_stages
from llvq.plan_stages import running_stages


def test_what_runs_on_a_cpu_is_what_was_compiled(compiled_nvfp4: Compiled) -> None:
    running = running_stages(compiled_nvfp4.stages, CPU)
    for name, stage in compiled_nvfp4.stages.items():
        ours, theirs = running[name].graph.graph.nodes, stage.graph.graph.nodes
        assert [n.target for n in ours] == [n.target for n in theirs]
        assert running[name].folds == () and running[name].inputs == stage.inputs


def test_weights_are_folded_as_a_loader_folds_them(compiled_nvfp4: Compiled) -> None:
    target = find_target("sm_90a", "w4a8")
    lowered = lower_stages(compiled_nvfp4.stages, compiled_nvfp4.recipe, target).stages
    stage = running_stages(lowered, target)["denoise"]
    widened = [fold for fold in stage.folds if fold.op == "widen"]
    assert 0 < len(widened) <= len(stage.folds)
    for fold in widened:
        assert [source.rpartition(".")[2] for source in fold.sources] == [
            "codes", "scales", "global_scale"
        ]  # fmt: skip
        assert sorted(fold.results.values()) == [0, 1]
        assert fold.results.keys() <= stage.weights.keys()
        assert not set(fold.sources) & stage.weights.keys()
        values, scales = sorted(stage.weights[name].nbytes for name in fold.results)[::-1]
        assert values < 2 * fold.nbytes and scales < values


def test_kernels_allocate_more_than_their_results(
    compiled_nvfp4: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention in FP8 makes a window of all keys first. Without Triton nobody can tell."""
    target = find_target("sm_90a", "w4a8")
    lowered = lower_stages(compiled_nvfp4.stages, compiled_nvfp4.recipe, target).stages
    peaks = [running_stages(lowered, target)["denoise"].allocations.peak[0]]

    def no_triton(_: str) -> None:
        raise KernelError("no Triton")

    monkeypatch.setattr(plan_stages, "table", no_triton)
    peaks.append(running_stages(lowered, target)["denoise"].allocations.peak[0])
    assert peaks[0] > peaks[1] > 0
