"""Pools that a video takes, from stages made up of a few allocations. Against real runs:
tests/test_plan.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from llvq.compiler import Compiled
from llvq.graphs.allocations import Allocations, Event
from llvq.graphs.weight_groups import SLOTS, Limits, WeightUse
from llvq.plan_pool import MIB
from llvq.plan_pools import CUBLAS_WORKSPACE, alone, play
from llvq.plan_stages import Fold, RunningStage
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import PageSpec, RunFacts
from llvq.sources import TensorSpec


@pytest.fixture
def facts(compiled_nvfp4: Compiled) -> RunFacts:
    """Four pages of 1 MiB and no VAE."""
    pages = PageSpec("none", 4, (("pages.plain", "uint8", (4 * MIB,)),))
    return replace(compiled_nvfp4.facts, pages=pages, loops=(), steps=2)


def bytes_of(nbytes: int) -> TensorSpec:
    return TensorSpec(torch.uint8, (nbytes,))


def stage(
    *events: Event,
    weights: dict[str, TensorSpec] | None = None,
    folds: tuple[Fold, ...] = (),
    inputs: tuple[InputSpec, ...] = (),
    results: int = 0,
) -> RunningStage:
    """It allocates what `events` say, and returns `results` bytes."""
    graph = Graph()
    made: tuple[Node, ...] = ()
    if results:
        node = graph.call_function(torch.zeros, (results,))
        node.meta["val"] = torch.empty(results, dtype=torch.uint8, device="meta")
        made = (node,)
    graph.output(made)
    gone = {number for number, nbytes in events if nbytes is None}
    kept = frozenset(number for number, _ in events if number not in gone)
    uses = tuple(WeightUse(n, w.nbytes, i, i) for i, (n, w) in enumerate((weights or {}).items()))
    module = GraphModule(torch.nn.Module(), graph)
    ran = Allocations((("node", tuple(events)),), kept)
    return RunningStage(module, inputs, weights or {}, folds, ran, uses)


LATENT = InputSpec("latent", torch.uint8, (3 * MIB,), "call")


@pytest.fixture
def stages() -> dict[str, RunningStage]:
    weight = {"dit.w": bytes_of(30 * MIB)}
    return {
        "condition": stage((0, 11 * MIB), results=11 * MIB),
        "modulate": stage((0, 10 * MIB), results=10 * MIB),
        "denoise": stage((0, 50 * MIB), (0, None), weights=weight, inputs=(LATENT,)),
        "refresh": stage((0, 40 * MIB), (0, None), weights=weight, inputs=(LATENT,)),
    }


def test_a_cpu_takes_what_is_live(stages: dict[str, RunningStage], facts: RunFacts) -> None:
    made = play(stages, facts, on_gpu=False)
    assert (made.loading, made.resident, made.streaming) == (30 * MIB, 30 * MIB, None)
    assert made.workspace == {"denoising": 50 * MIB}


def test_a_gpu_takes_segments_and_a_pool_of_recordings(
    stages: dict[str, RunningStage], facts: RunFacts
) -> None:
    made = play(stages, facts, on_gpu=True)
    recorded = 50 * MIB + CUBLAS_WORKSPACE
    assert made.workspace["denoising, recorded"] == recorded
    # Pages take 4 of a segment of 20. What holds results until they are copied fits into the rest,
    # time and again, and the input of both graphs in the end.
    named = (30 + 4 + 11 + 3 * 10 + 3) * MIB
    segments = (30 + 20 + 12 + 3 * 10) * MIB
    assert made.workspace["denoising"] == segments - named + CUBLAS_WORKSPACE


def test_a_recording_gives_back_what_is_free(
    stages: dict[str, RunningStage], facts: RunFacts
) -> None:
    """What a prompt took alone is not there when a longer history runs."""
    del stages["modulate"]
    transient = stage((1, 80 * MIB), (0, 2 * MIB), (1, None), results=2 * MIB)
    stages["condition"] = stage((0, 2 * MIB), results=2 * MIB)
    large = {**stages, "condition": transient}
    kept, trimmed = (
        play(large, facts, on_gpu=True, limits=limits).workspace["denoising"]
        - play(stages, facts, on_gpu=True, limits=limits).workspace["denoising"]
        for limits in (Limits(), None)
    )
    assert (trimmed, kept) == (0, 30 * MIB)


def test_weights_have_the_form_before_their_last_while_they_are_loaded(facts: RunFacts) -> None:
    folded = stage(
        weights={"folded": bytes_of(20 * MIB), "scales": bytes_of(10 * MIB)},
        folds=(Fold("widen", 12 * MIB, ("dit.q.codes",), {"folded": 0, "scales": 1}),),
    )
    made = play({"denoise": folded}, facts, on_gpu=False)
    assert (made.loading, made.resident) == (42 * MIB, 30 * MIB)


def test_what_the_decoder_holds_is_beside_the_denoiser(
    stages: dict[str, RunningStage], facts: RunFacts
) -> None:
    ring = (InputSpec("decode_state.0", torch.uint8, (64 * MIB,), "state"),)
    made = stage((0, 70 * MIB), (1, 5 * MIB), (0, None), inputs=ring, results=5 * MIB)
    both = {**stages, "decode_first": made, "decode": made}
    found = play(both, facts, on_gpu=False).workspace
    assert found["decoding"] == 80 * MIB  # with the frames of the call before
    on_gpu = play(both, facts, on_gpu=True).workspace
    assert on_gpu["decoding, recorded"] == (70 + 20) * MIB + CUBLAS_WORKSPACE
    # Of the calls only frames are left; all frames of a chunk may wait to be copied.
    calls = facts.frames_per_chunk // facts.latents_per_decode
    assert on_gpu["decoding"] == -(-calls // 4) * 20 * MIB


def test_stages_that_decode_on_a_device_of_their_own_take_no_pages(facts: RunFacts) -> None:
    made = stage((0, 70 * MIB), (0, None), weights={"vae.w": bytes_of(30 * MIB + 1)})
    found = play({"decode_first": made, "decode": made}, facts, on_gpu=True).workspace
    assert found["around weights"] == 2 * MIB - 1 and "denoising" not in found


def test_weights_that_pass_through_take_their_slots(facts: RunFacts) -> None:
    weights = {f"dit.w{i}": bytes_of(8 * MIB) for i in range(10)}
    stages = {"denoise": stage(weights={**weights, "dit.small": bytes_of(MIB)})}
    limits = Limits(sizes=(8 * MIB,), smallest=2 * MIB)
    made = play(stages, facts, on_gpu=False, limits=limits)
    assert made.resident == MIB and made.loading == 8 * MIB  # one after the other
    assert made.streaming is not None
    assert made.streaming.host == 80 * MIB and made.streaming.slots == SLOTS * 8 * MIB
    assert made.streaming.copied == {"denoise": 80 * MIB}


def test_a_stage_alone_has_its_weights_and_what_it_allocates() -> None:
    encoder = stage((0, 5 * MIB), (0, None), weights={"text.w": bytes_of(7 * MIB)})
    assert alone(encoder, on_gpu=False) == 12 * MIB
    assert alone(encoder, on_gpu=True) == 20 * MIB + CUBLAS_WORKSPACE
