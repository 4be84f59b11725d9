"""Bytes of weights, state and pages, from small graphs. Against real runs: tests/test_plan.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from llvq.compiler import Compiled, Stage
from llvq.formats.kv import KV_FORMATS
from llvq.plan_memory import (
    NUMERICS,
    kv_use,
    output_bytes,
    state_bytes,
    weight_bytes,
    weight_specs,
)
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import PageSpec, RunFacts
from llvq.sources import TensorSpec

LAYER = {
    "dit.q.codes": TensorSpec(torch.uint8, (8, 16)),
    "dit.q.scales": TensorSpec(torch.float8_e4m3fn, (8, 2)),
    "dit.q.global_scale": TensorSpec(torch.float32, (1,)),
    "dit.q.bias": TensorSpec(torch.bfloat16, (8,)),
}


def stage(weights: dict[str, TensorSpec], *sizes: tuple[int, ...], inputs: tuple = ()) -> Stage:
    """A graph that reads `weights` and returns an fp32 tensor of each of `sizes`."""
    graph = Graph()
    read = [valued(graph.get_attr(name), spec) for name, spec in weights.items()]
    made = (TensorSpec(torch.float32, shape) for shape in sizes)
    results = [valued(graph.call_function(torch.zeros, (s.shape,)), s) for s in made]
    graph.output(tuple(results))
    assert len(read) == len(weights)
    root = torch.nn.Module()
    for name, spec in weights.items():
        *path, leaf = name.split(".")
        owner = root
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, torch.nn.Module())
            owner = owner.get_submodule(step)
        owner.register_buffer(leaf, torch.empty(spec.shape, dtype=spec.dtype, device="meta"))
    outputs = tuple(f"y{i}" for i in range(len(sizes)))
    return Stage(GraphModule(root, graph), inputs, outputs)


def valued(node: Node, spec: TensorSpec) -> Node:
    node.meta["val"] = torch.empty(spec.shape, dtype=spec.dtype, device="meta")
    return node


@pytest.fixture
def facts(compiled_nvfp4: Compiled) -> RunFacts:
    return compiled_nvfp4.facts


def test_a_weight_that_two_stages_read_counts_once() -> None:
    one, two = dict(list(LAYER.items())[:3]), dict(list(LAYER.items())[1:])
    assert weight_specs({"denoise": stage(one), "refresh": stage(two)}) == LAYER


@pytest.mark.parametrize("numerics", ["w4a4", "w4a4-emulated", "w4a16"])
def test_four_bit_numerics_hold_what_the_file_holds(numerics: str) -> None:
    assert weight_bytes(LAYER, numerics) == {
        "denoiser: NVFP4 codes": 128,
        "denoiser: NVFP4 scales": 16,
        "denoiser: NVFP4 global scale": 4,
        "denoiser: kept bfloat16": 16,
    }


def test_eight_bit_numerics_hold_a_byte_per_value_and_a_scale_per_row() -> None:
    assert weight_bytes(LAYER, "w4a8") == {
        "denoiser: fp8 values": 8 * 32,
        "denoiser: fp8 channel scales": 8 * 4,
        "denoiser: kept bfloat16": 16,
    }


def test_names_of_packed_parts_mean_nothing_on_their_own() -> None:
    specs = {
        "vae.conv.scales": TensorSpec(torch.float32, (4,)),
        "text.embed.weight": TensorSpec(torch.bfloat16, (10, 2)),
        "clock": TensorSpec(torch.int64, ()),
    }
    for numerics in NUMERICS:
        assert weight_bytes(specs, numerics) == {
            "VAE: kept float32": 16, "text encoder: kept bfloat16": 40, "other: kept int64": 8,
        }  # fmt: skip


def test_state_is_what_decode_takes_and_gives_back(facts: RunFacts) -> None:
    inputs = (
        InputSpec("latent", torch.bfloat16, (1, 2), "emit"),
        InputSpec("decode_state.0", torch.bfloat16, (1, 3), "emit"),
        InputSpec("decode_state.1", torch.float32, (5,), "emit"),
    )
    loops = tuple((f"decode_state.{i}", f"next_state.{i}") for i in range(2))
    looped = replace(facts, loops=loops)
    stages = {"decode_first": stage({}, inputs=inputs), "decode": stage({}, inputs=inputs)}
    assert state_bytes(stages, looped) == 6 + 20
    assert state_bytes({}, looped) == state_bytes(stages, replace(facts, loops=())) == 0


def test_outputs_of_a_stage_or_of_none() -> None:
    stages = {"condition": stage({}, (2, 3), (5,)), "refresh": stage({})}
    assert output_bytes(stages, "condition") == 4 * (6 + 5)
    assert output_bytes(stages, "refresh") == output_bytes(stages, "modulate") == 0


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
