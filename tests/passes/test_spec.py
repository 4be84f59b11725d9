"""The laws of each level, and a check that does not believe what nodes say of themselves."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Node

from llvq.errors import SpecError
from llvq.passes import PIPELINE, Options, run
from llvq.passes.builder import Builder, is_call, shape
from llvq.passes.spec import SPECS, verify
from llvq.program import Level, Program
from llvq.recipe import NVFP4
from llvq.weights import WeightRecord

aten = torch.ops.aten
llvq = torch.ops.llvq


def first(program: Program, target: object) -> Node:
    graph = next(iter(program.graphs.values())).graph
    return next(node for node in graph.nodes if is_call(node, target))


def at(program: Program, name: str) -> Program:
    run(program, NVFP4, PIPELINE, Options(stop_after=name))
    return program


def insert(program: Program, before: Node, target: object, *args: object) -> Node:
    return Builder(program, "test", before, ()).call(target, *args)


def refused(program: Program, because: str) -> None:
    with pytest.raises(SpecError, match=because) as caught:
        verify(program)
    assert "not legal at level" in str(caught.value)


def test_every_level_of_the_pipeline_verifies(program: Program) -> None:
    seen = set()
    for step in PIPELINE:
        run(program, NVFP4, (step,))
        verify(program)
        seen.add(program.level)
    assert seen == set(Level) - {Level.LOWERED}


def test_a_stale_dtype_is_found_though_lint_passes(program: Program) -> None:
    node = first(program, aten.linear.default)
    node.meta["val"] = node.meta["val"].to(torch.float32)
    program.graph.graph.lint()
    refused(program, "recorded as float32.* but computes bfloat16")


def test_a_stale_shape_is_found(program: Program) -> None:
    node = first(program, aten.gelu.default)
    node.meta["val"] = node.meta["val"][..., :-1]
    refused(program, "but computes")


def test_a_device_literal_is_refused_from_the_start(program: Program) -> None:
    node = first(program, aten.linear.default)
    made = insert(program, node, aten.zeros.default, [2])
    made.kwargs = {"device": torch.device("cpu")}
    refused(program, "names the device cpu")


def test_core_aten_is_refused(program: Program) -> None:
    node = first(program, aten.linear.default)
    builder = Builder(program, "test", node, ())
    x, weight = node.all_input_nodes[:2]
    rows = builder.reshape(x, (shape(x)[0] * shape(x)[1], shape(x)[2]))
    builder.call(aten.mm.default, rows, builder.call(aten.t.default, weight))
    refused(program, "linears must be kept whole")


def test_attention_must_be_raised_at_canonical(program: Program) -> None:
    program.level = Level.CANONICAL
    refused(program, "canonicalize removes|raise-attention left it")


def test_a_loose_dequantize_is_refused_at_fused(program: Program) -> None:
    at(program, "insert-quantize").level = Level.FUSED
    refused(program, "a dequantize still feeds a linear")


def test_one_value_is_quantized_once(program: Program) -> None:
    at(program, "insert-quantize")
    node = first(program, llvq.quantize.default)
    twin = insert(program, node, llvq.quantize.default, *node.args)
    twin.meta["val"] = node.meta["val"]
    refused(program, "quantized more than once")


def test_a_value_may_be_quantized_with_two_static_scales(program: Program) -> None:
    at(program, "insert-quantize")
    node = first(program, llvq.quantize.default)
    builder = Builder(program, "test", node, ())
    for name in ("one", "two"):
        program.weights[name] = WeightRecord(name, "scale", (name,))
        scale = builder.weight(name, torch.float32, ())
        builder.call(llvq.quantize.default, *node.args, global_scale=scale)
    verify(program)
    builder.call(llvq.quantize.default, *node.args, global_scale=scale)
    refused(program, "quantized more than once")


def test_a_static_scale_is_a_weight_of_one_fp32_number(program: Program) -> None:
    at(program, "insert-quantize")
    program.weights["s"] = WeightRecord("s", "copy", ("s",))
    for kind, sizes in ((torch.bfloat16, ()), (torch.float32, (1,))):
        twin = program.copy()
        place = first(twin, llvq.quantize.default)
        builder = Builder(twin, "test", place, ())
        scale = builder.weight("s", kind, sizes)
        builder.call(llvq.quantize.default, *place.args, global_scale=scale)
        refused(twin, "static scale s is no fp32 weight")
    x = builder.call(aten.zeros.default, [])
    builder.call(llvq.quantize.default, *place.args, global_scale=x)
    refused(twin, "is no fp32 weight of one number")


def test_only_pages_are_mutated(program: Program) -> None:
    at(program, "raise-qk-norm-rope")
    node = first(program, aten.linear.default)
    insert(program, node, aten.add_.Tensor, node.args[0], 1)
    refused(program, "only pages and rings may be mutated")


def test_lowered_means_an_implementation_for_every_op(program: Program) -> None:
    at(program, "split-stages").level = Level.LOWERED
    refused(program, "no implementation was chosen")


def test_every_weight_needs_a_record(program: Program) -> None:
    name = next(iter(program.weights))
    del program.weights[name]
    with pytest.raises(SpecError, match="1 weights have no record") as caught:
        verify(program)
    assert name in str(caught.value)


def test_the_error_names_node_module_and_line(program: Program) -> None:
    node = first(program, aten.scaled_dot_product_attention.default)
    node.meta["val"] = node.meta["val"].float()
    with pytest.raises(SpecError) as caught:
        verify(program)
    place = str(caught.value).splitlines()[1]
    assert node.name in place and "dit.blocks.0.self_attn" in place and "dit.py:" in place


def test_laws_hold_from_their_level_on() -> None:
    assert {spec.level for spec in SPECS} <= set(Level)
    assert all(spec.level <= spec.until for spec in SPECS)
