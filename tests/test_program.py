"""Programs: copies are independent, texts and digests say the same for the same structure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.fx import Node

from llvq.models.chunk import capture_chunk
from llvq.models.config import ModelConfig
from llvq.passes import PIPELINE, Options, run
from llvq.program import Program, provenance, val, weight_names, where
from llvq.recipe import NVFP4

aten = torch.ops.aten


def first(program: Program, target: object) -> Node:
    return next(node for node in program.graph.graph.nodes if node.target is target)


def test_a_copy_is_rewritten_alone(program: Program) -> None:
    before, weights = program.text(), dict(program.weights)
    twin = program.copy()
    run(twin, NVFP4, PIPELINE)
    assert program.text() == before and program.weights == weights
    assert set(program.graphs) == {"chunk"} and not program.stage_inputs
    assert program.inputs != twin.inputs


def test_a_digest_is_of_the_structure(program: Program, tiny_config: ModelConfig) -> None:
    assert program.digest() == program.copy().digest()
    assert program.digest() == capture_chunk(tiny_config).digest()
    other = replace(tiny_config, dit=replace(tiny_config.dit, eps=1e-5))
    assert program.digest() != capture_chunk(other).digest()


def test_a_diff_shows_what_a_pass_did(program: Program) -> None:
    twin = program.copy()
    assert program.diff(twin) == ""
    run(twin, NVFP4, PIPELINE, Options(stop_after="raise-attention"))
    changed = program.diff(twin).splitlines()
    assert any(line.startswith("+") and "llvq.attention" in line for line in changed)
    assert any(line.startswith("-") and "scaled_dot_product_attention" in line for line in changed)


def test_text_names_every_graph_and_its_level(program: Program) -> None:
    assert program.text().startswith("// chunk at captured\n")
    run(program, NVFP4, PIPELINE)
    for stage in program.graphs:
        assert f"// {stage} at staged\n" in program.text()


def test_op_counts_are_over_all_graphs(program: Program) -> None:
    assert program.op_counts()["aten.linear.default"] == 26
    assert program.op_counts()["aten.scaled_dot_product_attention.default"] == 4
    run(program, NVFP4, PIPELINE)
    assert program.op_counts()["llvq.write_page.default"] == 2
    assert program.op_counts()["llvq.paged_attention.default"] == 3  # Two, and one to refresh.


def test_inputs_by_name(program: Program) -> None:
    assert program.input("timestep").rate == "step"
    with pytest.raises(StopIteration):
        program.input("nothing")


def test_a_node_says_what_and_where_it_is(program: Program) -> None:
    node = first(program, aten.scaled_dot_product_attention.default)
    assert tuple(val(node).shape) == (1, 2, 12, 32) and provenance(node) == {}
    name, path, line = where(node).split("   ")
    assert (name, path) == (node.name, "dit.blocks.0.self_attn")
    assert "dit.py:" in line


def test_weights_that_a_graph_reads(program: Program) -> None:
    names = weight_names(program.graph)
    assert set(names) == set(program.weights)
    assert names["dit.head.head.weight"].op == "get_attr"
