"""What libraries run, against the references of the ops."""

from __future__ import annotations

import pytest
import torch

from llvq.backends.torch_ops import OPS, Reference
from llvq.dialect import DIALECT, attention, fp8_linear, quantize_fp8, widen
from llvq.formats import nvfp4

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def no_launch(*_: object, **__: object) -> None:
    raise AssertionError("a library launches no kernel of ours")


def test_all_but_the_gemm_are_the_references() -> None:
    assert {op for op, function in OPS.items() if not isinstance(function, Reference)} == {
        "fp8_linear"
    }
    assert OPS.keys() == DIALECT.keys()


def test_a_reference_takes_a_launcher_and_does_not_use_it() -> None:
    q, k = torch.randn(1, 5, 2, 16), torch.randn(1, 9, 2, 16)
    assert torch.equal(OPS["attention"](no_launch, q, k, v=k), attention.reference(q, k, k))


@pytest.mark.skipif(
    DEVICE.type == "cpu" and torch.__version__ < (2, 13),
    reason="torch 2.11 multiplies FP8 on a CPU with one scale per tensor only",
)
@pytest.mark.parametrize("rows", [(7,), (1, 48), (2, 3, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_fp8_gemm_is_that_of_the_reference(rows: tuple[int, ...], with_bias: bool) -> None:
    random = torch.Generator().manual_seed(len(rows))
    x = quantize_fp8.reference(torch.randn(*rows, 64, generator=random).bfloat16())
    packed = nvfp4.quantize(torch.randn(48, 64, generator=random))
    w = widen.reference(packed.codes, packed.scales, packed.global_scale.view(1), [48])
    bias = torch.randn(48, generator=random).bfloat16() if with_bias else None
    args = (*(None if t is None else t.to(DEVICE) for t in (*x, *w, bias)), torch.bfloat16)
    found = OPS["fp8_linear"](no_launch, *args).cpu()
    wanted = fp8_linear.reference(*x, *w, bias, torch.bfloat16)
    assert found.shape == wanted.shape == (*rows, 48) and found.dtype == torch.bfloat16
    off = (found.float() - wanted.float()).abs().amax() / wanted.float().abs().amax()
    assert off <= fp8_linear.tolerance.relative
