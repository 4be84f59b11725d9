from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from llvq import canonical_json, graphs
from llvq.errors import ArtifactError

Inputs = tuple[Tensor, Tensor]


def through_bytes(gm: GraphModule) -> Any:
    return canonical_json.loads(canonical_json.dumps(graphs.dump(gm)))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def assert_bitwise_equal(got: object, want: object) -> None:
    got_leaves, got_tree = pytree.tree_flatten(got)
    want_leaves, want_tree = pytree.tree_flatten(want)
    assert got_tree == want_tree
    for a, b in zip(got_leaves, want_leaves, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_a_loaded_graph_computes_the_same_bits(
    model: nn.Module, exported: GraphModule, inputs: Inputs
) -> None:
    loaded = graphs.load(through_bytes(exported), device="cpu")
    graphs.attach(loaded, tensors_of(model))
    assert_bitwise_equal(loaded(*inputs), model(*inputs))
    assert_bitwise_equal(loaded(input=inputs[0], scale=inputs[1]), model(*inputs))


def test_a_graph_exported_on_meta_takes_real_weights(
    model: nn.Module, exported_on_meta: GraphModule, inputs: Inputs
) -> None:
    loaded = graphs.load(through_bytes(exported_on_meta), device="cpu")
    assert all(buffer.is_meta for buffer in loaded.buffers())
    graphs.attach(loaded, tensors_of(model))
    assert_bitwise_equal(loaded(*inputs), model(*inputs))


def test_weights_are_named_without_building(exported: GraphModule) -> None:
    loaded = graphs.load(through_bytes(exported), device="meta")
    assert graphs.weights_used(through_bytes(exported)) == graphs.weights(loaded).keys()


def test_dump_of_load_is_the_document(exported: GraphModule) -> None:
    document = through_bytes(exported)
    loaded = graphs.load(document, device="meta")
    assert graphs.dump(loaded) == document
    assert graphs.digest(loaded) == graphs.digest(exported)
    assert graphs.text(loaded) == graphs.text(exported)


def test_rule_metadata_survives(exported: GraphModule) -> None:
    record = {"rule": "fuse", "from": ("a", "b"), "impl": None, "count": 2}
    list(exported.graph.nodes)[-2].meta["custom"] = {"llvq": record}
    loaded = graphs.load(through_bytes(exported), device="meta")
    assert list(loaded.graph.nodes)[-2].meta["custom"] == {"llvq": record}


def test_llvq_operators_run(llvq_op: torch._ops.OpOverload) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(llvq_op, (x, float("inf")))
    graph.output([y, y])
    document = through_bytes(GraphModule({}, graph))
    assert graphs.ops_used(document) == {"llvq.test_scale.default"}
    assert torch.equal(
        graphs.load(document, device="cpu")(torch.ones(1))[1], torch.tensor([torch.inf])
    )


def test_ops_used_needs_no_operator() -> None:
    document = sample()
    document["nodes"][2]["target"] = "llvq.not_registered.default"
    assert graphs.ops_used(document) == {"llvq.not_registered.default"}
    with pytest.raises(ArtifactError, match=r"llvq\.not_registered\.default is not registered"):
        graphs.load(document, device="cpu")


def test_attach_lists_every_problem(model: nn.Module, exported: GraphModule) -> None:
    loaded = graphs.load(through_bytes(exported), device="cpu")
    tensors = tensors_of(model)
    del tensors["blocks.0.gain"]
    tensors["blocks.1.gain"] = torch.ones(7)
    tensors["blocks.0.q.bias"] = torch.ones(8, dtype=torch.float16)
    tensors["other"] = torch.ones(1)
    with pytest.raises(ArtifactError) as caught:
        graphs.attach(loaded, tensors)
    message = str(caught.value)
    for name in ("blocks.0.gain is missing", "blocks.1.gain is", "blocks.0.q.bias is", "other is"):
        assert name in message
    assert all(buffer.is_meta for buffer in loaded.buffers())


def test_weights_and_attach_on_an_export(model: nn.Module, exported_on_meta: GraphModule) -> None:
    want = tensors_of(model)
    specs = graphs.weights(exported_on_meta)
    assert {name: spec.shape for name, spec in specs.items()} == {
        name: tuple(tensor.shape) for name, tensor in want.items()
    }
    graphs.attach(exported_on_meta, want)
    assert torch.equal(exported_on_meta.get_buffer("blocks.1.gain"), want["blocks.1.gain"])


def node(name: str, op: str, target: str, *args: Any, **fields: Any) -> dict[str, Any]:
    record = {"name": name, "op": op, "target": target, "args": list(args), "kwargs": {}}
    spec = {"tensor": ["float32", [2]]}
    return record | {"val": spec, "module": "", "source": "", "llvq": None} | fields


def sample() -> dict[str, Any]:
    """x -> aten.add(x, w) as a document, written by hand."""
    return {
        "nodes": [
            node("w", "get_attr", "block.w"),
            node("x", "placeholder", "x"),
            node("add", "call_function", "aten.add.Tensor", {"node": "x"}, {"node": "w"}),
            node("output", "output", "output", {"node": "add"}, val=None),
        ]
    }


def test_the_sample_loads() -> None:
    loaded = graphs.load(sample(), device="cpu")
    graphs.attach(loaded, {"block.w": torch.ones(2)})
    assert torch.equal(loaded(torch.ones(2)), torch.full((2,), 2.0))


def put(index: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["nodes"][index].update(fields)


def insert(index: int, record: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["nodes"].insert(index, record)


INJECTION = "x): __import__('os').abort() #"
BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no nodes": lambda d: d.clear(),
    "nodes no list": lambda d: d.update(nodes=3),
    "node no object": insert(0, 7),
    "field missing": lambda d: d["nodes"][0].pop("val"),
    "field surplus": put(0, code="1"),
    "name no string": put(1, name=3),
    "name illegal": put(1, name="a b"),
    "name keyword": put(1, name="for"),
    "name builtin": put(2, name="len"),
    "name reserved": put(2, name="torch"),
    "name twice": put(1, name="w"),
    "input twice": insert(2, node("y", "placeholder", "x")),
    "input injects": put(1, target=INJECTION),
    "input self": put(1, target="self"),
    "weight injects": put(0, target='w"), __import__("os").abort(), ("'),
    "weight empty part": put(0, target="a..b"),
    "weight attribute": put(0, target="forward"),
    "weight no tensor": put(0, val=None),
    "weight is module": insert(0, node("v", "get_attr", "block")),
    "weight two shapes": insert(0, node("v", "get_attr", "block.w", val={"tensor": ["int8", [2]]})),
    "keyword injects": put(2, kwargs={"x=1, **": 1}),
    "keyword no name": put(2, kwargs={"class": 1}),
    "kind unknown": put(2, op="call_module"),
    "method": put(2, op="call_method", target="abort"),
    "op unknown": put(2, target="aten.nothing.default"),
    "op namespace": put(2, target="os.system"),
    "op operator": put(2, target="operator.methodcaller"),
    "forward reference": put(2, args=[{"node": "output"}]),
    "self reference": put(2, args=[{"node": "add"}]),
    "no such node": put(2, args=[{"node": "y"}]),
    "encoding": put(2, args=[{"pickle": "gASV"}]),
    "args no list": put(2, args="xy"),
    "kwargs no object": put(2, kwargs=[]),
    "val encoding": put(2, val={"node": "x"}),
    "val shape": put(2, val={"tensor": ["float32", [-2]]}),
    "source two lines": put(2, source="a.py:1\nimport os"),
    "module control": put(2, module="a\nb"),
    "llvq encoding": put(2, llvq={"rule": "a", "impl": "b"}),
    "placeholder default": put(1, args=[1]),
    "output missing": lambda d: d["nodes"].pop(),
    "output twice": insert(3, node("out", "output", "output", {"node": "add"})),
    "output two args": put(3, args=[1, 2]),
    "empty": lambda d: d["nodes"].clear(),
}


@pytest.mark.parametrize("damage", BAD.values(), ids=BAD.keys())
def test_malformed_documents_are_refused(damage: Callable[[dict[str, Any]], Any]) -> None:
    document = sample()
    damage(document)
    with pytest.raises(ArtifactError):
        graphs.load(document, device="cpu")


@pytest.mark.parametrize("document", [None, [], 3, "x", {"nodes": {}}])
def test_things_that_are_no_documents(document: object) -> None:
    for function in (graphs.ops_used, lambda d: graphs.load(d, device="cpu")):
        with pytest.raises(ArtifactError, match="not a list of nodes"):
            function(document)


def test_unknown_operators_are_refused_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("a node was built")

    monkeypatch.setattr(torch.fx.Graph, "create_node", fail)
    document = sample()
    document["nodes"][2]["target"] = "os.system"
    with pytest.raises(ArtifactError, match=r"os\.system"):
        graphs.load(document, device="cpu")


junk = st.sampled_from(
    [None, True, -1, 2**70, 0.5, "", "x", "a.b", [], {}, [[]], {"node": "x"}, {"tuple": [1]}]
)


@given(index=st.integers(0, 3), data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_wrong_field_loads_or_is_refused_politely(index: int, data: st.DataObject) -> None:
    document = copy.deepcopy(sample())
    field = data.draw(st.sampled_from(sorted(document["nodes"][index])))
    document["nodes"][index][field] = data.draw(junk)
    try:
        graphs.load(document, device="cpu")
    except ArtifactError as error:
        assert error.what
