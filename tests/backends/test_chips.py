"""Datasheet numbers: complete, and in the order that the hardware has."""

from __future__ import annotations

import pytest

from llvq.backends.base import NUMERICS_OF_TARGET
from llvq.backends.chips import H100_SXM, PRODUCTS, Product
from llvq.roofline import COMPUTES_IN, NVFP4, PLAIN


def test_every_gpu_target_has_a_product() -> None:
    assert PRODUCTS.keys() == NUMERICS_OF_TARGET.keys() - {"cpu"}


@pytest.mark.parametrize("product", [p for each in PRODUCTS.values() for p in each])
def test_fewer_bits_are_faster_and_somebody_says_so(product: Product) -> None:
    rates = list(product.tflops.values())
    assert rates == sorted(rates) and next(iter(product.tflops)) == "bf16"
    assert product.tflops["fp8"] == 2 * product.tflops["bf16"]
    assert "NVIDIA" in product.source and 1 < product.bandwidth < 10


@pytest.mark.parametrize("target", PRODUCTS)
def test_every_dtype_that_a_target_computes_in_has_a_rate(target: str) -> None:
    dtypes = {PLAIN, *COMPUTES_IN.values()}
    dtypes |= {NVFP4[numerics] for numerics in NUMERICS_OF_TARGET[target] if numerics in NVFP4}
    assert all(dtypes <= product.tflops.keys() for product in PRODUCTS[target])


def test_hopper_is_what_was_seen_to_be_just_out_of_reach() -> None:
    """Products ran at 788 (bf16) and 1418 TFLOP/s (fp8) on one, and copies at 3.0 TB/s."""
    assert 788 < H100_SXM.tflops["bf16"] < 1.3 * 788
    assert 1418 < H100_SXM.tflops["fp8"] < 1.4 * 1418
    assert 3.0 < H100_SXM.bandwidth < 3.0 * 1.2
