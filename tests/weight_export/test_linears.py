"""Quantized linears are found in every stage, with the layers that their weights stack."""

from __future__ import annotations

from llvq.artifact import Box
from llvq.weight_export.linears import LINEARS, layer_of, quantized_linears


def test_every_quantized_layer_of_a_program_is_found(program: Box) -> None:
    found = list(quantized_linears(program))
    layers = {layer for linear in found for layer in linear.layers}
    records = program.manifest["weights"].values()
    quantized = {s for r in records if r["op"] == "quantize" for s in r["sources"]}
    assert layers == {layer_of(source) for source in quantized} and len(layers) == 20
    stacked = {"blocks.0.self_attn.q", "blocks.0.self_attn.k", "blocks.0.self_attn.v"}
    assert any(stacked == set(linear.layers) for linear in found)
    assert all(linear.node["target"] in LINEARS for linear in found)


def test_what_makes_an_operand(program: Box) -> None:
    makers = {one.maker(one.operand(0))["target"] for one in quantized_linears(program)}
    assert "operator.getitem" not in makers
    assert {"llvq.norm_modulate_quantize.default", "llvq.quantize.default"} <= makers
