"""What graphs compute from weights alone is computed once, and its sources are given back."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from llvq import graphs
from llvq.dialect import DIALECT, fp8_linear, widen
from llvq.errors import ArtifactError
from llvq.formats import nvfp4
from llvq.runtime.bind import bind
from llvq.runtime.fold import attach_weights, foldable
from tests.backends import toy_ops

PACKED = ("codes", "scales", "global_scale")


def weights(*layers: str) -> dict[str, Tensor]:
    """Packed weights [48, 32] and a bias of each layer."""
    random, made = torch.Generator().manual_seed(5), dict[str, Tensor]()
    for layer in layers:
        packed = nvfp4.quantize(torch.randn(48, 32, generator=random))
        parts = (packed.codes, packed.scales, packed.global_scale.view(1))
        made |= {f"{layer}.{name}": part for name, part in zip(PACKED, parts, strict=True)}
        made[f"{layer}.bias"] = torch.randn(48, generator=random).bfloat16()
    return made


class Lazy(Mapping[str, Tensor]):
    """Reads a copy whenever it is asked, and notes what it read, and how many packed ones lived."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.read, self.most = tensors, list[str](), 0
        self.packed: list[weakref.ref[Tensor]] = []

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        tensor = self.tensors[name].clone()
        if name.endswith(PACKED):
            self.packed.append(weakref.ref(tensor))
            self.most = max(self.most, sum(ref() is not None for ref in self.packed))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class Made:
    """A graph in the making. Its inputs are an activation in FP8."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.graph = tensors, Graph()
        self.x = [self.graph.placeholder(name) for name in ("values", "scale")]

    def weight(self, name: str) -> Node:
        node = self.graph.create_node("get_attr", name)
        node.meta["val"] = self.tensors[name].to("meta")
        return node

    def call(self, target: Any, *args: Any) -> Node:
        node = self.graph.call_function(target, args)
        node.meta["val"] = target(*torch.fx.node.map_arg(args, lambda n: n.meta["val"]))
        return node

    def widened(self, layer: str) -> tuple[Node, Node]:
        pair = self.call(widen.overload, *(self.weight(f"{layer}.{p}") for p in PACKED), [48])
        return tuple(self.call(operator.getitem, pair, i) for i in (0, 1))  # type: ignore[return-value]

    def linear(self, layer: str) -> Node:
        args = (*self.x, *self.widened(layer), self.weight(f"{layer}.bias"), torch.bfloat16)
        return self.graph.call_function(fp8_linear.overload, args)

    def module(self, *results: Node) -> GraphModule:
        self.graph.output(results)
        read = [node for node in self.graph.nodes if node.op == "get_attr"]
        return GraphModule({str(n.target): n.meta["val"] for n in read}, self.graph)


def activation() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(9)
    return DIALECT["quantize_fp8"].reference(torch.randn(7, 32, generator=random))


def linear(tensors: Mapping[str, Tensor], layer: str) -> Tensor:
    w = widen.reference(*(tensors[f"{layer}.{part}"] for part in PACKED), [48])
    return fp8_linear.reference(*activation(), *w, tensors[f"{layer}.bias"], torch.bfloat16)


def test_widened_weights_become_weights() -> None:
    tensors = weights("a", "b")
    made = Made(tensors)
    gm = made.module(made.linear("a"), made.linear("b"))
    attach_weights({"denoise": gm}, tensors)
    held = graphs.weights(gm)
    assert sorted(spec.dtype.itemsize for spec in held.values()) == [1, 1, 2, 2, 4, 4]
    assert not [name for name in held if name.endswith(PACKED)]
    assert not [n for n in gm.graph.nodes if n.target is widen.overload]
    gm.graph.lint()
    for found, layer in zip(gm(*activation()), "ab", strict=True):
        assert torch.equal(found, linear(tensors, layer))


def test_stages_share_what_they_compute_alike() -> None:
    """The second graph names its nodes otherwise, and reads one weight more."""
    tensors = weights("a", "b")
    first, second = Made(tensors), Made(tensors)
    gms = {"denoise": first.module(first.linear("a"))}
    others = [second.linear("b"), second.linear("a")]
    gms["refresh"] = second.module(*others)
    lazy = Lazy(tensors)
    attach_weights(gms, lazy)
    assert sorted(lazy.read) == sorted(tensors), "each is read once"
    held = [dict(gm.named_buffers()) for gm in gms.values()]
    shared = graphs.weights(gms["denoise"]).keys() & graphs.weights(gms["refresh"]).keys()
    assert len(shared) == 3
    for name in shared:
        assert held[0][name].data_ptr() == held[1][name].data_ptr()
    assert torch.equal(gms["refresh"](*activation())[1], linear(tensors, "a"))


def test_one_layer_is_packed_at_a_time() -> None:
    tensors = weights("a", "b", "c", "d")
    made, lazy = Made(tensors), Lazy(tensors)
    gm = made.module(*(made.linear(layer) for layer in "abcd"))
    attach_weights({"denoise": gm}, lazy)
    assert lazy.most == 3
    assert [ref for ref in lazy.packed if ref() is not None] == []


def test_a_weight_that_something_else_reads_stays() -> None:
    tensors = weights("a")
    made = Made(tensors)
    gm = made.module(made.linear("a"), made.weight("a.codes"))
    attach_weights({"denoise": gm}, tensors)
    assert {n for n in graphs.weights(gm) if n.endswith(PACKED)} == {"a.codes"}
    found, codes = gm(*activation())
    assert torch.equal(codes, tensors["a.codes"])
    assert torch.equal(found, linear(tensors, "a"))


def test_what_follows_from_folded_weights_alone_is_folded_too() -> None:
    tensors = weights("a")
    made = Made(tensors)
    values, scale = made.widened("a")
    wide = made.call(torch.ops.aten.to.dtype, values, torch.float32)
    gm = made.module(wide, scale)
    attach_weights({"denoise": gm}, tensors)
    assert [n.op for n in gm.graph.nodes] == ["placeholder"] * 2 + ["get_attr"] * 2 + ["output"]
    packed = [tensors[f"a.{part}"] for part in PACKED]
    assert torch.equal(gm(*activation())[0], widen.reference(*packed, [48])[0].float())


def test_plain_torch_on_weights_is_left_alone() -> None:
    """A cast would double a weight that is read once."""
    tensors = weights("a")
    made = Made(tensors)
    gm = made.module(made.call(torch.ops.aten.to.dtype, made.weight("a.bias"), torch.float32))
    assert foldable(gm) == {}
    attach_weights({"denoise": gm}, {"a.bias": tensors["a.bias"]})
    assert graphs.weights(gm).keys() == {"a.bias"}


@pytest.mark.usefixtures("toy_kernels")
def test_a_bound_op_is_folded_by_its_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(launch: Any, *args: Any) -> tuple[Tensor, Tensor]:
        values, scale = widen.reference(*args)
        return values, scale * launch

    monkeypatch.setitem(toy_ops.OPS, "widen", ours)
    tensors = weights("a")
    made = Made(tensors)
    gm = made.module(*made.widened("a"))
    for node in gm.graph.nodes:
        if node.target is widen.overload:
            node.meta["custom"] = {"llvq": {"impl": "triton"}}
    bind(gm, 3.0)  # type: ignore[arg-type]
    attach_weights({"denoise": gm}, tensors)
    packed = [tensors[f"a.{part}"] for part in PACKED]
    assert torch.equal(gm(*activation())[1], widen.reference(*packed, [48])[1] * 3)


@pytest.mark.parametrize("name", ["a.codes", "a.bias"])
def test_a_weight_of_another_shape_is_told_with_its_stage(name: str) -> None:
    tensors = weights("a")
    made = Made(tensors)
    gm = made.module(made.linear("a"))
    with pytest.raises(ArtifactError, match=name) as caught:
        attach_weights({"denoise": gm}, {**tensors, name: torch.zeros(3)})
    assert caught.value.where == "stage denoise"
    assert "is torch.float32 [3]" in caught.value.what
