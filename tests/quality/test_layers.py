from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.fx import Graph, GraphModule

from llvq.formats import nvfp4
from llvq.quality import layers
from llvq.quality.comparison import Comparison
from llvq.quality.layers import Activation, LayerError, QuantizedLayer, layer_kind
from llvq.quality.metrics import Energies, energies
from llvq.quality.pair import open_pair


def test_kind_is_what_blocks_share() -> None:
    assert layer_kind("dit.blocks.12.self_attn.q") == "self_attn.q"
    assert layer_kind("dit.head.head") == "dit.head.head"


def test_every_linear_of_every_block_is_there(found: Comparison) -> None:
    attention = [f"{a}_attn.{p}" for a in ("self", "cross") for p in "qkvo"]
    wanted = {f"dit.blocks.{i}.{n}" for i in (0, 1) for n in [*attention, "ffn.0", "ffn.2"]}
    assert {error.layer.name for error in found.layers} == wanted
    assert all(error.output.calls for error in found.layers)


def test_parts_of_a_stack_are_its_rows(files: object, found: Comparison) -> None:
    """Oracle: the checkpoint's own weight, quantized alone."""
    checkpoint = torch.load(files.checkpoint, weights_only=True)["generator"]  # type: ignore[attr-defined]
    error = next(e for e in found.layers if e.layer.name == "dit.blocks.1.self_attn.v")
    assert (error.layer.index, error.layer.first, error.layer.last) == (2, 128, 192)
    weight = checkpoint["model.blocks.1.self_attn.v.weight"]
    packed = nvfp4.quantize(weight, block_rule="four_over_six")
    wanted = energies(weight, nvfp4.dequantize(*packed, torch.float32))
    assert error.weight == wanted
    shards = files.program.glob("weights/*.safetensors")  # type: ignore[attr-defined]
    held = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    codes, _, g = error.layer.packed(held)
    assert torch.equal(codes, packed.codes)
    assert torch.equal(g, packed.global_scale.reshape(1))


def test_errors_are_those_of_four_bits(found: Comparison) -> None:
    for error in found.layers:
        assert 15 < error.weight.sqnr_db < 30
        assert 12 < error.output.total.sqnr_db < 30
        assert error.output.total.sqnr_db < error.weight.sqnr_db + 3


def test_a_probe_measures_the_linear_it_stands_behind() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=random) for s in ((5, 32), (8, 32), (8,)))
    packed = nvfp4.quantize(weight, block_rule="max")
    tensors = {"t.codes": packed.codes, "t.scales": packed.scales}
    tensors["t.global_scale"] = packed.global_scale.reshape(1)
    error = LayerError(QuantizedLayer("t", "t.weight", "t", 0, 0, 8), Energies())
    gm = _linear(weight, bias)
    layers._add_to(gm, "denoise", {"t.weight": error}, tensors, Activation("max"))
    wanted = F.linear(x, weight, bias)
    for _ in range(2):
        assert torch.equal(gm(x), wanted)
    assert error.output.calls == 2
    nearest = (nvfp4.dequantize(*nvfp4.quantize(t, block_rule="max"), t.dtype) for t in (x, weight))
    once = energies(wanted, F.linear(*nearest, bias))
    assert error.output.stages == {"denoise": [once, once]}


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> GraphModule:
    root, graph = torch.nn.Module(), Graph()
    root.t = torch.nn.Module()
    root.t.register_buffer("weight", weight)
    root.t.register_buffer("bias", bias)
    args = (graph.placeholder("x"), graph.get_attr("t.weight"), graph.get_attr("t.bias"))
    graph.output(graph.call_function(layers.LINEAR, args))
    return GraphModule(root, graph)


def test_a_layer_whose_smoothing_is_nowhere_is_counted(files: object) -> None:
    pair = open_pair(files.checkpoint, files.program)  # type: ignore[attr-defined]
    assert layers.unmeasured(pair) == 0
    record = pair.box.manifest["weights"]["dit.blocks.0.self_attn.o"]
    record["facts"] = [{"pre_quant_scale": "dit.gone.pre_quant_scale"}]
    assert layers.unmeasured(pair) == 1
