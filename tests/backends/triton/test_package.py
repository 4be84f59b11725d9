"""What goes into a box about kernels: binaries, how to launch them, and calls that launch all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from llvq import canonical_json
from llvq.artifact import BoxWriter
from llvq.backends.triton.package import write_kernels
from llvq.backends.triton.sources import sources_digest
from llvq.dialect import DIALECT
from llvq.errors import TargetError
from llvq.runtime.contract import InputSpec
from tests.backends import toy_ops

bf16 = torch.bfloat16
pytestmark = pytest.mark.usefixtures("toy_kernels")


def stage(op: str, impl: str, arguments: dict[str, Tensor], *others: object) -> GraphModule:
    """A graph of one call: tensors are its inputs."""
    graph = Graph()
    nodes = [graph.placeholder(name) for name in arguments]
    for node, value in zip(nodes, arguments.values(), strict=True):
        node.meta["val"] = value
    node = graph.call_function(DIALECT[op].overload, (*nodes, *others))
    node.meta["val"] = DIALECT[op].overload(*arguments.values(), *others)
    node.meta["custom"] = {"llvq": {"impl": impl}}
    graph.output((node,))
    return GraphModule(torch.nn.Module(), graph)


def inputs(arguments: dict[str, Tensor]) -> list[InputSpec]:
    return [InputSpec(n, t.dtype, tuple(t.shape), "call") for n, t in arguments.items()]


def test_a_box_has_every_binary_and_a_call_for_each(tmp_path: Path) -> None:
    given = {name: torch.empty(1, 8, 64, dtype=bf16, device="meta") for name in "xy"}
    given["gate"] = torch.empty(1, 2, 64, dtype=bf16, device="meta")
    gm = stage("gate_residual", "triton", given)
    with BoxWriter(tmp_path / "b.llvq") as writer:
        said = write_kernels(writer, {"denoise": gm}, {"denoise": inputs(given)}, "sm_100a")
        folder = writer.adopt("kernels/sm_100a")
        table = canonical_json.loads((folder / "kernels.json").read_bytes())
        binaries = {path.stem: path.read_bytes() for path in folder.glob("*.cubin")}
        writer._finished = True
    assert said["chip"] == "sm_100a" and said["count"] == 1
    assert said["sources"] == sources_digest() and said["triton"]
    ((name, entry),) = table["kernels"].items()
    assert binaries.keys() == {name} and binaries[name].startswith(b"\x7fELF")
    assert entry["entry"] == toy_ops.gate_residual_kernel.__name__ and entry["warps"] == 4
    (check,) = table["checks"]
    assert (check["op"], check["impl"]) == ("gate_residual", "triton")
    assert check["args"]["gate"] == {"strided": ["bfloat16", [1, 2, 64], [128, 64, 1]]}


def test_a_library_has_no_binary_and_a_reference_needs_no_check(tmp_path: Path) -> None:
    x = {"x": torch.empty(3, 32, dtype=bf16, device="meta")}
    gm = stage("quantize_fp8", "torch", x)
    with BoxWriter(tmp_path / "b.llvq") as writer:
        said = write_kernels(writer, {"denoise": gm}, {"denoise": inputs(x)}, "sm_90a")
        table = canonical_json.loads((writer.adopt("kernels/sm_90a") / "kernels.json").read_bytes())
        writer._finished = True
    assert said["count"] == 0 and table == {"kernels": {}, "checks": []}


def test_pages_of_a_check_are_those_of_no_more_layers_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the kernel that it launches for them is in the box."""

    def write(launch, pages, k, v, slot, layer, kv_format):  # type: ignore[no-untyped-def]
        layers = pages[0].shape[0]
        kernel = toy_ops.gate_residual_kernel
        launch(kernel, (1,), k, k, v, pages[0], layers, 1, E=1, BLOCK=16)

    monkeypatch.setitem(toy_ops.OPS, "write_page", write)
    graph = Graph()
    shapes = {"values": (16, 2, 4, 6, 2, 16), "k": (1, 6, 2, 16), "v": (1, 6, 2, 16), "slot": ()}
    nodes = {name: graph.placeholder(name) for name in shapes}
    for name, node in nodes.items():
        dtype = torch.int64 if name == "slot" else bf16
        node.meta["val"] = torch.empty(shapes[name], dtype=dtype, device="meta")
    values, *others = nodes.values()
    call = graph.call_function(DIALECT["write_page"].overload, ([values], *others, 2, "none"))
    call.meta |= {"val": None, "custom": {"llvq": {"impl": "triton"}}}
    graph.output(())
    given = {name: node.meta["val"] for name, node in nodes.items()}
    with BoxWriter(tmp_path / "b.llvq") as writer:
        gm = GraphModule(torch.nn.Module(), graph)
        said = write_kernels(writer, {"refresh": gm}, {"refresh": inputs(given)}, "sm_90a")
        table = canonical_json.loads((writer.adopt("kernels/sm_90a") / "kernels.json").read_bytes())
        writer._finished = True
    (check,) = table["checks"]
    assert check["args"]["pages"][0]["strided"][1] == [3, 2, 4, 6, 2, 16]
    assert said["count"] == 2, "16 layers are a multiple of 16, and 3 are not"


def test_a_ring_of_a_check_has_no_more_slots_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(launch, ring, x, decoded, rate, skip, offset):  # type: ignore[no-untyped-def]
        kernel = toy_ops.gate_residual_kernel
        launch(kernel, (1,), x, x, x, ring, ring.shape[0], 1, E=1, BLOCK=16)

    monkeypatch.setitem(toy_ops.OPS, "ring_write", write)
    given = {
        "ring": torch.empty(16, 5, 6, 8, dtype=bf16, device="meta"),
        "x": torch.empty(2, 3, 4, 8, dtype=bf16, device="meta"),
        "decoded": torch.empty((), dtype=torch.int64, device="meta"),
    }
    gm = stage("ring_write", "triton", given, 1, 0, 12)
    with BoxWriter(tmp_path / "b.llvq") as writer:
        write_kernels(writer, {"decode": gm}, {"decode": inputs(given)}, "sm_90a")
        table = canonical_json.loads((writer.adopt("kernels/sm_90a") / "kernels.json").read_bytes())
        writer._finished = True
    (check,) = table["checks"]
    assert check["args"]["ring"]["strided"][1] == [4, 5, 6, 8]


def test_a_kernel_that_fails_leaves_no_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapper(launch, x, y, gate):  # type: ignore[no-untyped-def]
        launch(toy_ops.gate_residual_kernel, (1,), x, y, gate, x, 1, 1, E="wide", BLOCK=16)
        return torch.empty_like(x)

    monkeypatch.setitem(toy_ops.OPS, "gate_residual", wrapper)
    given = {name: torch.empty(1, 8, 64, dtype=bf16, device="meta") for name in ("x", "y", "gate")}
    gm = stage("gate_residual", "triton", given)
    with pytest.raises(TargetError, match="cannot be compiled for sm_90a") as caught:  # noqa: SIM117
        with BoxWriter(tmp_path / "b.llvq") as writer:
            write_kernels(writer, {"denoise": gm}, {"denoise": inputs(given)}, "sm_90a")
    assert "gate_residual_kernel of llvq.gate_residual" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
