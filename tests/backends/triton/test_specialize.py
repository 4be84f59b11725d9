"""What decides a binary: the same on `meta` as on a device, in this process as in the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from llvq.backends.triton.specialize import Argument, Specialization, specialize
from llvq.errors import KernelError


@triton.jit
def kernel(x, bias, rows, eps, out, SIZE: tl.constexpr, RULE: tl.constexpr):
    pass


def specialized(*args: Argument, **options: Any) -> Specialization:
    sizes = {"warps": 4, "stages": 2} | options
    return specialize(kernel, args, {"SIZE": 32, "RULE": "max"}, **sizes)


X = torch.randn(4, 8).bfloat16()


def test_an_argument_of_none_is_a_constant() -> None:
    found = specialized(X, None, 48, 1e-6, X.float())
    assert found.signature == (("x", "*bf16"), ("rows", "i32"), ("eps", "fp32"), ("out", "*fp32"))
    assert found.constants == (("RULE", "max"), ("SIZE", 32), ("bias", None))
    assert found.divisible == ("x", "rows", "out")


def test_values_do_not_decide_but_for_factors_of_16() -> None:
    first = specialized(X, X, 48, 1e-6, X)
    assert first == specialized(X.to("meta"), X + 1, 64, 2.0, X.clone())
    assert first != specialized(X, X, 49, 1e-6, X)
    assert first != specialized(X, X, 48, 1e-6, X.half())


def test_what_a_kernel_does_not_specialize_decides_nothing() -> None:
    @triton.jit(do_not_specialize=["layer"])
    def of_a_layer(x, layer):
        pass

    sizes = {"warps": 4, "stages": 2}
    found = [specialize(of_a_layer, (X, layer), {}, **sizes) for layer in (3, 16)]
    assert found[0] == found[1] and found[0].divisible == ("x",)


def test_a_name_says_everything_and_is_the_same_tomorrow() -> None:
    """Boxes on disk name their kernels so."""
    found = specialized(X, None, 48, 1e-6, X)
    assert found.name == "kernel.19d4b3da24e17c4c"
    others = [specialized(X, None, 48, 1e-6, X, **{key: value}).name
              for key, value in {"warps": 8, "stages": 3, "exact": True}.items()]  # fmt: skip
    assert len({found.name, *others, replace(found, constants=()).name}) == 5


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, True, "max", X.cfloat(), X.bool()])
def test_what_no_kernel_takes_is_refused(value: Any) -> None:
    with pytest.raises(KernelError, match=r"kernel kernel cannot take .* as bias"):
        specialized(X, value, 48, 1e-6, X)


def test_an_address_must_be_aligned() -> None:
    view = torch.randn(64)[3:]
    with pytest.raises(KernelError, match="takes x at an address that is not a multiple of 16"):
        specialized(view, None, 48, 1e-6, X)
    assert specialized(view.clone(), None, 48, 1e-6, X)


def test_every_parameter_has_an_argument() -> None:
    with pytest.raises(ValueError, match="shorter"):
        specialized(X, None, 48)
