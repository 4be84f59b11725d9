from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.fx import GraphModule

from llvq import canonical_json, graphs
from llvq.errors import ArtifactError


def by_target(document: dict, target: str) -> dict:
    return next(node for node in document["nodes"] if node["target"] == target)


def test_the_dump_is_canonical_json(exported: GraphModule) -> None:
    document = graphs.dump(exported)
    assert canonical_json.loads(canonical_json.dumps(document)) == document
    assert graphs.dump(exported) == document


def test_a_node_says_where_it_comes_from(exported: GraphModule) -> None:
    document = graphs.dump(exported)
    linear = by_target(document, "aten.linear.default")
    assert linear["module"] == "blocks.0.q"
    assert linear["source"].startswith("conftest.py:")
    assert linear["val"] == {"tensor": ["float32", [3, 8]]}
    assert by_target(document, "blocks.0.gain")["op"] == "get_attr"


def test_no_device_and_no_path_is_left(
    exported: GraphModule, exported_on_meta: GraphModule
) -> None:
    for gm in (exported, exported_on_meta):
        text = json.dumps(graphs.dump(gm))
        assert "/" not in text and '"cpu"' not in text and '"meta"' not in text
    assert by_target(graphs.dump(exported), "aten.arange.default")["kwargs"]["device"] == {
        "device": "target"
    }


def test_the_device_of_the_export_does_not_matter(
    exported: GraphModule, exported_on_meta: GraphModule
) -> None:
    assert graphs.digest(exported) == graphs.digest(exported_on_meta)


def test_a_device_spelled_as_a_string_is_normalised(exported: GraphModule) -> None:
    want = graphs.digest(exported)
    (arange,) = exported.graph.find_nodes(op="call_function", target=torch.ops.aten.arange.default)[
        :1
    ]
    arange.kwargs = {**arange.kwargs, "device": "cuda:1"}
    assert graphs.digest(exported) == want


def test_the_digest_sees_structure_and_kernels_but_not_provenance(exported: GraphModule) -> None:
    want = graphs.digest(exported)
    node = exported.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[0]
    node.meta["stack_trace"] = 'File "elsewhere.py", line 1'
    node.meta["custom"] = {"llvq": {"rule": "some-rule", "from": ("a", "b")}}
    assert graphs.digest(exported) == want

    with_kernel = copy.deepcopy(exported)
    same_node = next(n for n in with_kernel.graph.nodes if n.name == node.name)
    same_node.meta["custom"] = {"llvq": {"rule": "some-rule", "impl": "triton"}}
    assert graphs.digest(with_kernel) != want

    node.args = (*node.args[:2], None)
    assert graphs.digest(exported) != want


def test_the_digest_of_several_graphs_is_by_name(exported: GraphModule) -> None:
    other = copy.deepcopy(exported)
    other.graph.find_nodes(op="placeholder")[0].name = "renamed"
    both = graphs.digest_all({"a": exported, "b": other})
    assert graphs.digest_all({"b": other, "a": exported}) == both
    assert graphs.digest_all({"a": other, "b": exported}) != both


def test_a_rule_may_say_where_its_node_comes_from(exported: GraphModule) -> None:
    node = exported.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[0]
    del node.meta["nn_module_stack"], node.meta["stack_trace"]
    node.meta["custom"] = {"llvq": {"module": "blocks.0", "source": "rule.py:3", "from": ["x"]}}
    dumped = by_target(graphs.dump(exported), "aten.linear.default")
    assert (dumped["module"], dumped["source"]) == ("blocks.0", "rule.py:3")


def test_unknown_functions_are_refused_by_name(exported: GraphModule) -> None:
    node = exported.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[0]
    node.target = torch.relu
    with pytest.raises(ArtifactError, match="relu") as caught:
        graphs.dump(exported)
    assert "node linear blocks.0.q" in str(caught.value)


def test_a_submodule_call_is_refused() -> None:
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(ArtifactError, match="call_module"):
        graphs.dump(traced)


def test_a_dynamic_shape_is_refused() -> None:
    relu = torch.nn.ReLU()
    dynamic = torch.export.export(
        relu, (torch.randn(4, 2),), dynamic_shapes={"input": {0: torch.export.Dim.DYNAMIC}}
    )
    with pytest.raises(ArtifactError, match="dynamic"):
        graphs.dump(dynamic.module(check_guards=False))
