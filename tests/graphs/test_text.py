from __future__ import annotations

import operator
import re

import torch
from torch.fx import Graph, GraphModule

from llvq import graphs


def test_golden_text() -> None:
    graph = Graph()
    w = graph.get_attr("block.q.weight")
    x = graph.placeholder("x")
    linear = graph.call_function(torch.ops.aten.linear.default, (x, w))
    split = graph.call_function(torch.ops.aten.split.Tensor, (linear, 2, -1))
    half = graph.call_function(operator.getitem, (split, 0))
    ones = graph.call_function(
        torch.ops.aten.ones.default,
        ([4],),
        {"dtype": torch.bfloat16, "device": torch.device("cpu")},
    )
    graph.output((half, ones, None))
    small, large = torch.empty(1, 2, device="meta"), torch.empty(1, 4, device="meta")
    w.meta["val"] = torch.empty(4, 4, dtype=torch.bfloat16, device="meta")
    x.meta["val"] = linear.meta["val"] = large
    split.meta["val"] = [small, small]
    half.meta["val"], ones.meta["val"] = small, torch.empty(4, dtype=torch.bfloat16, device="meta")
    linear.meta["nn_module_stack"] = {"q": ("block.q", "Linear")}
    linear.meta["stack_trace"] = 'File "/somewhere/dit.py", line 88, in forward'
    linear.meta["custom"] = {"llvq": {"rule": "some-rule", "impl": "reference"}}
    gm = GraphModule({"block.q.weight": torch.empty(4, 4)}, graph)
    plain = """\
w:block.q.weight : bf16[4,4]
%x : f32[1,4] = input x
%linear_default : f32[1,4] = aten.linear(%x, w:block.q.weight)
%split_tensor : (f32[1,2], f32[1,2]) = aten.split.Tensor(%linear_default, 2, -1)
%getitem : f32[1,2] = operator.getitem(%split_tensor, 0)
%ones_default : bf16[4] = aten.ones([4], device=target, dtype=bf16)
return (%getitem, %ones_default, None)
"""
    assert graphs.text(gm, provenance=False) == plain
    comment = "  # block.q dit.py:88 rule=some-rule impl=reference"
    assert graphs.text(gm) == plain.replace("block.q.weight)", "block.q.weight)" + comment)


def test_one_line_for_each_node(exported: GraphModule) -> None:
    lines = graphs.text(exported).splitlines()
    assert len(lines) == len(exported.graph.nodes)
    assert any(re.search(r"  # blocks\.0\.q conftest\.py:\d+$", line) for line in lines)
    assert lines[-1].startswith("return {x: %")
