"""ModelOpt's words, against the code that writes them there."""

from __future__ import annotations

from typing import Any

import pytest

from llvq.weight_export.modelopt_config import Beside, modelopt_config

IGNORE = ["proj_out", "condition_embedder.time_proj"]
SMOOTHED, RANK_4 = Beside(smoothed=True), Beside(smoothed=True, rank=4)


def theirs(**words: Any) -> dict[str, Any]:
    """What ModelOpt makes of its own record of a quantized model."""
    from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format

    return convert_hf_quant_config_format(
        {"quantization": {"exclude_modules": IGNORE, "group_size": 16, **words}}
    )


@pytest.mark.parametrize(
    ("beside", "static", "words"),
    [
        (Beside(), True, {"quant_algo": "NVFP4"}),
        (Beside(), False, {"quant_algo": "W4A16_NVFP4"}),
        (RANK_4, True, {"quant_algo": "NVFP4_SVD", "lora_rank": 4}),
    ],
)
def test_modelopts_own_conversion_gives_the_same(
    beside: Beside, static: bool, words: dict[str, Any]
) -> None:
    ours = modelopt_config(IGNORE, {"a": beside, "b": beside}, static=static)
    del ours["producer"]
    assert ours == theirs(**words)


def test_awq_is_named_as_there_and_has_groups_besides() -> None:
    ours = modelopt_config(IGNORE, {"a": SMOOTHED, "b": Beside()}, static=True)
    group = ours.pop("config_groups")["group_0"]
    del ours["producer"]
    assert ours == theirs(quant_algo="NVFP4_AWQ")
    like = theirs(quant_algo="NVFP4_SVD")["config_groups"]["group_0"]
    assert group == like
    without = modelopt_config(IGNORE, {"a": SMOOTHED}, static=False)
    assert "input_activations" not in without["config_groups"]["group_0"]


def test_the_quant_algo_is_the_one_that_modelopt_gives_such_linears() -> None:
    """Of one linear with a factor, and of one with a branch besides."""
    from modelopt.torch.export.model_config import (
        QUANTIZATION_NVFP4_AWQ,
        QUANTIZATION_NVFP4_SVDQUANT,
    )
    from modelopt.torch.export.quant_utils import process_layer_quant_config

    for kind, beside in ((QUANTIZATION_NVFP4_AWQ, SMOOTHED), (QUANTIZATION_NVFP4_SVDQUANT, RANK_4)):
        record = {"a.quantization": kind, "a.awq_block_size": 16, "b.quantization": "nvfp4"}
        record["b.awq_block_size"] = 16
        layer = process_layer_quant_config(record)["quantized_layers"]["a"]
        mixed = modelopt_config(IGNORE, {"a": beside, "b": Beside()}, static=True)
        if beside.rank:
            assert mixed["quant_algo"] == "MIXED_PRECISION"
            assert mixed["quantized_layers"]["a"] == layer
        else:
            assert mixed["quant_algo"] == layer["quant_algo"]


def test_some_with_a_branch_and_some_without_are_listed_one_by_one() -> None:
    linears = {"b": RANK_4, "a": Beside(), "c": Beside()}
    ours = modelopt_config([], linears, static=True)
    del ours["producer"]
    svd = {"quant_algo": "NVFP4_SVD", "group_size": 16}
    flags = {"has_zero_point": False, "pre_quant_scale": True}
    plain = {"quant_algo": "NVFP4", "group_size": 16}
    layers = {"a": plain, "b": svd | flags, "c": plain}
    assert ours == theirs(quant_algo="MIXED_PRECISION", quantized_layers=layers, exclude_modules=[])


def test_branches_of_several_ranks_are_not_said_to_have_one() -> None:
    ours = modelopt_config([], {"a": RANK_4, "b": Beside(rank=8)}, static=True)
    assert ours["quant_algo"] == "NVFP4_SVD"
    assert "lora_rank" not in ours["config_groups"]["group_0"]
