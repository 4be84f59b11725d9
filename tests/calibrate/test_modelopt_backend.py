"""Our fake quantizer in ModelOpt: the values of its own, and nothing left behind."""

from __future__ import annotations

import importlib.metadata
import warnings
from types import SimpleNamespace

import pytest
import torch
from modelopt.torch.quantization.nn import TensorQuantizer, is_registered_quant_backend
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from torch import nn

from llvq.calibrate import modelopt_backend
from llvq.calibrate.configs import BACKEND, CONFIGS
from llvq.calibrate.modelopt_backend import (
    backend,
    calibrate,
    fake_quantize,
    modelopt_version,
    quantizers,
    sibling_groups,
)
from llvq.errors import TargetError


class Small(nn.Module):
    """Two linears, and what must be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv3d(4, 32, (1, 2, 2), stride=(1, 2, 2))
        self.norm = nn.LayerNorm(32)
        self.a, self.b, self.outer = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        return self.outer(self.b(torch.relu(self.a(tokens))))


def run(model: nn.Module) -> None:
    torch.manual_seed(1)
    for _ in range(2):
        model(torch.randn(1, 4, 1, 8, 8).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("shape", [(48,), (3, 32), (2, 5, 64)])
def test_values_are_those_of_modelopt(
    dtype: torch.dtype, static: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * torch.tensor([0.01, 30.0]).repeat(shape[-1] // 2)).to(dtype)
    amax = x.abs().amax() * (2 if static else 1)
    tensor, scales, scale = NVFP4QTensor.quantize(
        x.clone(), 16, weights_scaling_factor_2=amax.float() / (6 * 448)
    )
    expected = tensor.dequantize(
        dtype=dtype, scale=scales, double_scale=scale, block_sizes={-1: 16}
    )
    found = fake_quantize(x, SimpleNamespace(_amax=amax) if static else SimpleNamespace())
    # The order of two divisions moves a value that lies on a border of two codes.
    assert (found == expected).float().mean() > 0.98
    torch.testing.assert_close(found, expected, rtol=0.35, atol=float(amax) / 2688)


def test_only_the_layers_named_are_quantized() -> None:
    model = Small().bfloat16()
    calibrate(model, ("a", "b"), CONFIGS["max"], run)
    enabled = {
        n for n, m in model.named_modules() if isinstance(m, TensorQuantizer) and m.is_enabled
    }
    assert enabled == {f"{n}.{part}_quantizer" for n in ("a", "b") for part in ("input", "weight")}


def test_twice_without_a_warning_and_nothing_stays() -> None:
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*backend.*")
            calibrate(Small().bfloat16(), ("a", "b"), CONFIGS["awq_lite"], run)
        assert not is_registered_quant_backend(BACKEND)


def test_the_backend_goes_when_the_work_fails() -> None:
    with pytest.raises(KeyboardInterrupt), backend():
        assert is_registered_quant_backend(BACKEND)
        raise KeyboardInterrupt
    assert not is_registered_quant_backend(BACKEND)


def test_modelopt_does_not_print(capfd: pytest.CaptureFixture[str]) -> None:
    calibrate(Small().bfloat16(), ("a",), CONFIGS["svdquant"], run)
    assert capfd.readouterr().out == ""


def missing(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_without_modelopt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelopt_backend, "version", missing)
    with pytest.raises(TargetError, match="needs NVIDIA ModelOpt") as caught:
        modelopt_version()
    assert caught.value.fix == 'pip install "nvidia-modelopt==0.47.*"'


@pytest.mark.parametrize(("found", "good"), [("0.47.0", True), ("0.47", True), ("0.470", False),
                                             ("0.46.2", False), ("1.0", False)])  # fmt: skip
def test_another_series_is_refused(monkeypatch: pytest.MonkeyPatch, found: str, good: bool) -> None:
    monkeypatch.setattr(modelopt_backend, "version", lambda name: found)
    if good:
        assert modelopt_version() == found
    else:
        with pytest.raises(TargetError, match=f"ModelOpt {found}"):
            modelopt_version()


def test_siblings_are_those_that_read_one_input() -> None:
    names = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q",
             "cross_attn.k", "cross_attn.v", "ffn.0")  # fmt: skip
    block = tuple(f"blocks.0.{name}" for name in names)
    assert sibling_groups(block) == [block[:3], block[5:7]]
    assert sibling_groups(("blocks.0.self_attn.q", "blocks.1.self_attn.k")) == []


def test_quantizers_begin_with_none() -> None:
    first, *rest = quantizers(CONFIGS["smoothquant"], ("a",))
    assert first == {"quantizer_name": "*", "enable": False}
    assert [row["quantizer_name"] for row in rest] == ["a.weight_quantizer", "a.input_quantizer"]
