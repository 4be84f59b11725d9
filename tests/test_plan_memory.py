"""Bytes of weights, state and pages, from small graphs. Against real runs: tests/test_plan.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.fx import Graph, GraphModule

from llvq.compiler import Compiled
from llvq.formats.kv import KV_FORMATS
from llvq.graphs.allocations import Allocations
from llvq.plan_memory import buffer_specs, kv_use, state_specs, weight_rows
from llvq.plan_stages import Fold, RunningStage
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import PageSpec, RunFacts
from llvq.sources import TensorSpec

LAYER = {
    "dit.q.codes": TensorSpec(torch.uint8, (8, 16)),
    "dit.q.scales": TensorSpec(torch.float8_e4m3fn, (8, 2)),
    "dit.q.global_scale": TensorSpec(torch.float32, (1,)),
    "dit.q.bias": TensorSpec(torch.bfloat16, (8,)),
}


def stage(
    weights: dict[str, TensorSpec], *folds: Fold, inputs: tuple[InputSpec, ...] = ()
) -> RunningStage:
    """A stage that holds `weights`."""
    nothing = GraphModule(torch.nn.Module(), Graph())
    return RunningStage(nothing, inputs, weights, folds, Allocations((), frozenset()), ())


@pytest.fixture
def facts(compiled_nvfp4: Compiled) -> RunFacts:
    return compiled_nvfp4.facts


def test_a_weight_that_two_stages_read_counts_once() -> None:
    one, two = dict(list(LAYER.items())[:3]), dict(list(LAYER.items())[1:])
    assert weight_rows({"denoise": stage(one), "refresh": stage(two)}) == {
        "denoiser: NVFP4 codes": 128,
        "denoiser: NVFP4 scales": 16,
        "denoiser: NVFP4 global scale": 4,
        "denoiser: kept bfloat16": 16,
    }


def test_what_is_folded_is_told_by_its_form_and_the_part_that_it_is_of() -> None:
    made = {
        "folded_a": TensorSpec(torch.float8_e4m3fn, (8, 32)),
        "folded_b": TensorSpec(torch.float32, (8,)),
        "folded_c": TensorSpec(torch.bfloat16, (2, 2, 4)),
    }
    widened = Fold("widen", 148, ("dit.q.codes", "dit.q.scales"), {"folded_a": 0, "folded_b": 1})
    taps = Fold("subpixel_weight", 18, ("vae.conv.weight",), {"folded_c": 0})
    assert weight_rows({"decode": stage(made, widened, taps)}) == {
        "denoiser: fp8 values": 8 * 32,
        "denoiser: fp8 channel scales": 8 * 4,
        "VAE: subpixel weight": 32,
    }


def test_names_of_packed_parts_mean_nothing_on_their_own() -> None:
    specs = {
        "vae.conv.scales": TensorSpec(torch.float32, (4,)),
        "text.embed.weight": TensorSpec(torch.bfloat16, (10, 2)),
        "clock": TensorSpec(torch.int64, ()),
    }
    assert weight_rows({"decode": stage(specs)}) == {
        "VAE: kept float32": 16, "text encoder: kept bfloat16": 40, "other: kept int64": 8,
    }  # fmt: skip


def test_state_is_what_decode_takes_and_gives_back_or_writes_in_place(facts: RunFacts) -> None:
    inputs = (
        InputSpec("latent", torch.bfloat16, (1, 2), "emit"),
        InputSpec("decode_state.0", torch.bfloat16, (1, 3), "emit"),
        InputSpec("decode_state.1", torch.float32, (5,), "state"),
    )
    looped = replace(facts, loops=(("decode_state.0", "next_state.0"),))
    stages = {"decode_first": stage({}, inputs=inputs), "decode": stage({}, inputs=inputs)}
    sizes = {name: spec.nbytes for name, spec in state_specs(stages, looped).items()}
    assert sizes == {"decode_state.0": 6, "decode_state.1": 20}
    assert state_specs({}, looped) == {}


def test_cuda_graphs_read_copies_of_what_is_no_page(facts: RunFacts) -> None:
    pages = facts.pages.tensors[0][0]
    inputs = (
        InputSpec(pages, torch.uint8, (100,), "call"),
        InputSpec("latent", torch.bfloat16, (1, 2), "call"),
        InputSpec("page_table", torch.int64, (None,), "chunk", (0, 2)),
    )
    stages = {"denoise": stage({}, inputs=inputs), "refresh": stage({}, inputs=inputs)}
    assert sorted(spec.nbytes for spec in buffer_specs(stages, facts)) == [0, 4, 16]


@pytest.mark.parametrize("kv_format", list(KV_FORMATS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pages_against_the_same_values_in_the_models_dtype(
    facts: RunFacts, kv_format: str, dtype: torch.dtype
) -> None:
    layers, slots, tokens, heads, head_dim = 2, 5, 12, 2, 64
    specs = KV_FORMATS[kv_format].specs(layers, slots, tokens, heads, head_dim, dtype)
    name = str(dtype).removeprefix("torch.")
    tensors = tuple((n, str(d).removeprefix("torch."), tuple(s)) for n, d, s in specs)
    use = kv_use(replace(facts, dtype=name, pages=PageSpec(kv_format, slots, tensors)))
    assert use is not None
    values = 2 * layers * slots * tokens * heads * head_dim  # keys and values
    assert use.bytes_plain == values * dtype.itemsize
    assert use.nbytes == sum(torch.empty(s, dtype=d, device="meta").nbytes for _, d, s in specs)
    assert use.bytes_per_chunk == use.nbytes // slots
    assert use.compression == pytest.approx(use.bytes_plain / use.nbytes)
    assert (use.compression == 1) is (kv_format == "none")


def test_what_is_kept_counts_but_is_no_page(facts: RunFacts) -> None:
    """Beside four packed pages, three chunks in bf16."""
    plain, (layers, _, slots, *rest) = kv_use(facts), facts.pages.tensors[0][2]
    assert plain is not None and plain.kept == 0
    shape = (layers, 2, 3, *rest[:-1], rest[-1] * 2)
    tensors = (*facts.pages.tensors, ("pages.kept", "bfloat16", shape))
    pages = PageSpec("nvfp4", slots, tensors, ("sink", "newest"))
    use = kv_use(replace(facts, pages=pages))
    assert use is not None and use.kv_format == "nvfp4 + sink kept + newest kept"
    assert use.kept == use.nbytes - plain.nbytes == 3 * plain.bytes_plain // slots
    assert use.bytes_per_chunk == plain.bytes_per_chunk
    assert use.compression == pytest.approx(use.bytes_plain / use.nbytes)


def test_a_model_without_a_cache_has_no_pages(facts: RunFacts) -> None:
    assert kv_use(replace(facts, pages=PageSpec("none", 0, ()))) is None
