"""A kernel that does not compute what its op says is found before a box runs, and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.artifact.kernels import Check
from llvq.dialect import DIALECT, EXACT, quantize
from llvq.errors import KernelError
from llvq.runtime.self_check import distance, self_check
from tests.backends import toy_ops
from tests.backends.triton.interpreter import Interpreted

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("toy_kernels")


def meta(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


GATED = Check(
    "gate_residual", "triton", {"x": meta(1, 8, 40), "y": meta(1, 8, 40), "gate": meta(1, 2, 40)}
)
QUANTIZED = Check("quantize", "triton", {"x": meta(16, 64), "block_rule": "four_over_six"})
WRITTEN = Check(
    "write_page",
    "triton",
    {
        "pages": [meta(1, 2, 4, 6, 2, 32)],
        "k": meta(1, 6, 2, 32),
        "v": meta(1, 6, 2, 32),
        "slot": meta(dtype=torch.int64),
        "layer": 0,
        "kv_format": "none",
    },
)


def refused(check: Check) -> KernelError:
    with pytest.raises(KernelError, match=f"llvq.{check.op} computes something else") as caught:
        self_check([check], Interpreted(), CPU)
    return caught.value


def replace(monkeypatch: pytest.MonkeyPatch, op: str, change: Any) -> None:
    """`op` gives what `change` makes of what the reference gives."""

    def wrong(launch: Any, **arguments: Any) -> Any:
        return change(DIALECT[op].reference(**arguments))

    monkeypatch.setitem(toy_ops.OPS, op, wrong)


def test_kernels_that_are_right_pass() -> None:
    self_check([GATED, QUANTIZED, WRITTEN], Interpreted(), CPU)


def test_a_wrong_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told that its groups are twice as long as they are."""

    def wrong(launch: Any, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        out = torch.empty_like(x)
        kernel = toy_ops.gate_residual_kernel
        launch(kernel, (2,), x, y, gate, out, x.numel(), 8, E=40, BLOCK=256)
        return out

    monkeypatch.setitem(toy_ops.OPS, "gate_residual", wrong)
    error = refused(GATED)
    assert error.where == "kernel gate_residual_kernel"
    assert "result 0 is off by" in (error.because or "") and "0.0078 is allowed" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: torch.full_like(y, float("nan")),
        lambda y: y.float(),
        lambda y: y[:, :4],
        lambda y: y.flip(-1),
    ],
    ids=["nan", "dtype", "shape", "order"],
)
def test_every_way_to_be_wrong(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    replace(monkeypatch, "gate_residual", change)
    assert "result 0" in str(refused(GATED))


def test_codes_may_differ_where_a_sum_moved_a_value_by_an_ulp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """16 x 64 codes are 512 bytes: one that differs is more than one in a thousand."""
    assert quantize.tolerance == EXACT

    def flip(result: Any) -> Any:
        codes = result[0].clone()
        codes.view(-1)[5] ^= 1
        return codes, *result[1:]

    replace(monkeypatch, "quantize", flip)
    assert "result 0 is off by 0.002, 0.001 is allowed" in str(refused(QUANTIZED))
    larger = Check("quantize", "triton", {**QUANTIZED.arguments, "x": meta(64, 64)})
    self_check([larger], Interpreted(), CPU)


def test_a_page_that_is_not_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toy_ops.OPS, "write_page", lambda launch, **arguments: None)
    error = refused(WRITTEN)
    assert error.where == "triton" and "result" in str(error)


def test_what_a_library_runs_is_held_against_the_reference_too() -> None:
    x, scale = meta(8, 64, dtype=torch.float8_e4m3fn), meta(8, 1, dtype=torch.float32)
    w, of_w = meta(48, 64, dtype=torch.float8_e4m3fn), meta(48, dtype=torch.float32)
    arguments = {"x_values": x, "x_scale": scale, "w_values": w, "w_scale": of_w}
    arguments |= {"bias": meta(48), "dtype": torch.bfloat16}
    # PyTorch 2.11 has no products in FP8 with a scale per row on a CPU.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self_check([Check("fp8_linear", "torch", arguments)], Interpreted(), device)


def test_an_op_that_writes_in_place_leaves_what_it_is_held_against() -> None:
    """Both calls begin with the same pages, and neither sees what the other wrote."""
    self_check([WRITTEN] * 3, Interpreted(), CPU)


def test_codes_of_a_sum_are_held_to_the_share_that_their_op_allows() -> None:
    """Zeros of either sign are the same code there; a scale is a code, not a number."""
    op = DIALECT["nvfp4_linear_gelu_quantize"]
    codes = torch.zeros(100, dtype=torch.uint8)
    scales = torch.ones(100).to(torch.float8_e4m3fn)
    assert distance(op, codes + 0x88, codes) == (0.0, op.tolerance.flipped)
    for ours, reference in ((codes, codes), (scales, scales)):
        changed = ours.clone()
        changed.view(torch.uint8)[:5] += 1
        off, allowed = distance(op, changed, reference)
        assert off == pytest.approx(0.05) and allowed == op.tolerance.flipped
    assert distance(op, torch.tensor(1.5), torch.tensor(1.0)) == (0.5, op.tolerance.relative)
