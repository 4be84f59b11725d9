"""Random arguments are what their names say: pages that exist, scales above zero, any code."""

from __future__ import annotations

import torch
from torch import Tensor

from llvq.artifact.kernels import Check
from llvq.dialect import DIALECT
from llvq.runtime.random_arguments import random_arguments

CPU = torch.device("cpu")


def meta(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


ATTENTION = Check(
    "paged_attention",
    "triton",
    {
        "q": torch.empty_strided((1, 6, 2, 32), (1152, 192, 32, 1), dtype=torch.bfloat16,
                                 device="meta"),
        "k": meta(1, 6, 2, 32),
        "v": meta(1, 6, 2, 32),
        "pages": [
            meta(1, 2, 4, 6, 2, 16, dtype=torch.uint8),
            meta(1, 2, 4, 6, 2, 2, dtype=torch.float8_e4m3fn),
            meta(1, 2, 4, dtype=torch.float32),
        ],
        "table": meta(64, dtype=torch.int64),
        "cos": None,
        "sin": None,
        "scale": 0.25,
        "layer": 0,
        "kv_format": "nvfp4",
    },
)  # fmt: skip


def test_tensors_are_what_a_check_says_and_the_rest_is_as_it_is() -> None:
    made = random_arguments(ATTENTION, CPU, 0)
    assert made["q"].stride() == (1152, 192, 32, 1) and made["q"].float().std() > 0.8
    assert [page.dtype for page in made["pages"]] == [p.dtype for p in ATTENTION.arguments["pages"]]
    assert (made["cos"], made["scale"], made["layer"], made["kv_format"]) == (
        None,
        0.25,
        0,
        "nvfp4",
    )


def test_pages_hold_codes_and_positive_scales_and_are_named_by_the_table() -> None:
    made = random_arguments(ATTENTION, CPU, 0)
    codes, scales, g = made["pages"]
    assert codes.unique().numel() > 200
    assert scales.float().min() > 0 and g.min() > 0
    assert g.min() >= 1 / 6 and g.max() <= 0.5, "a page's values are as large as those of a chunk"
    assert made["table"].unique().tolist() == [0, 1, 2, 3]
    result = DIALECT["paged_attention"].reference(**made)
    assert result.isfinite().all() and result.float().std() > 0.1


def test_fp8_activations_have_signs_and_their_scales_none() -> None:
    values, scale = meta(8, 64, dtype=torch.float8_e4m3fn), meta(8, 1, dtype=torch.float32)
    check = Check("fp8_linear", "torch", {"x_values": values, "x_scale": scale})
    made = random_arguments(check, CPU, 0)
    assert made["x_values"].float().min() < 0 < made["x_scale"].min()


def test_a_modulation_is_no_scale_of_codes() -> None:
    made = random_arguments(Check("norm_modulate", "triton", {"scale": meta(1, 2, 64)}), CPU, 0)
    assert made["scale"].min() < 0


def test_pages_in_fp8_have_signs() -> None:
    pages = [meta(1, 2, 4, 6, 2, 16, dtype=torch.float8_e4m3fn), meta(1, 2, 4, dtype=torch.float32)]
    values, scale = random_arguments(Check("write_page", "triton", {"pages": pages}), CPU, 0)[
        "pages"
    ]
    assert values.float().min() < 0 < scale.min()


def test_the_seed_decides() -> None:
    first, same, other = (random_arguments(ATTENTION, CPU, seed)["k"] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_mask_keeps_some_and_ids_are_small() -> None:
    tensors = {"mask": meta(4, 64, dtype=torch.bool), "ids": meta(1, 64, dtype=torch.int64)}
    made = random_arguments(Check("attention", "torch", tensors), CPU, 0)
    assert made["mask"].any() and not made["mask"].all()
    assert set(made["ids"].unique().tolist()) == {0, 1}


def test_given_scales_cover_what_they_are_for() -> None:
    """Codes that saturate would hide what a kernel computes."""
    angle, one = meta(6, 16, dtype=torch.float32), meta(1, dtype=torch.float32)
    shapes = {"x": meta(1, 6, 64), "weight": meta(64), "cos": angle, "sin": angle, "out_scale": one}
    rest = {"heads": 2, "eps": 1e-6, "round_first": True}
    made = random_arguments(Check("rms_norm_rope_fp8", "triton", {**shapes, **rest}), CPU, 0)
    codes = DIALECT["rms_norm_rope_fp8"].reference(**made).float().abs()
    assert 4 < codes.max() < 448
    own = {**ATTENTION.arguments, "q": meta(1, 6, 2, 32, dtype=torch.float8_e4m3fn)}
    scaled = Check(
        "paged_attention_quantize_fp8", "triton", {**own, "q_scale": one, "k_scale": one}
    )
    made = random_arguments(scaled, CPU, 0)
    assert (made["k"].float().abs().amax() / made["k_scale"]) < 448
    values, _ = DIALECT["paged_attention_quantize_fp8"].reference(**made)
    assert values.float().isfinite().all() and values.float().std() > 0.1
