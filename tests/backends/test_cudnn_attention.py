"""cuDNN's attention in FP8: what it is asked, on any machine; what it answers, on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends import cudnn_attention
from llvq.backends.cudnn_attention import SCALARS, attend, empty_scalars
from llvq.errors import KernelError
from llvq.formats import fp8

HEADS, DIM = 2, 128
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and cuDNN")


def operands(tokens: int, keys: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(tokens)
    made = (torch.randn(rows, HEADS, DIM, generator=random) for rows in (tokens, keys, keys))
    q, k, v = (fp8.encode(x * 40, torch.ones(())).to(device) for x in made)
    return q, k, v


def scalars_for(descale: float, device: str) -> Tensor:
    """The same for Q, K and V; results are under that of V."""
    found = empty_scalars(torch.device(device)).fill_(float("nan"))
    values = (descale, descale, descale, 1 / 256, 256.0, 1 / descale)
    found[: len(SCALARS), 0] = torch.tensor(values, device=device)
    return found


@on_gpu
def test_it_is_attention() -> None:
    q, k, v = operands(256, 768, "cuda")
    out = torch.empty_like(q).view(torch.uint8).fill_(0x7F).view(fp8.DTYPE)
    attend(q, k, v, scalars_for(1 / 40, "cuda"), out, 0.1)
    wide = (x.transpose(0, 1).float() / 40 for x in (q, k, v))
    plain = torch.nn.functional.scaled_dot_product_attention(*wide, scale=0.1).transpose(0, 1)
    assert (out.float() / 40 - plain).abs().max() <= 0.1 * plain.abs().max()


@on_gpu
def test_what_cudnn_refuses_is_said() -> None:
    q, k, v = (x[..., :72].contiguous() for x in operands(256, 256, "cuda"))
    with pytest.raises(KernelError, match="cuDNN cannot run attention in FP8 of 256 queries"):
        attend(q, k, v, scalars_for(1 / 40, "cuda"), torch.empty_like(q), 0.1)


def test_without_it_the_fix_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(cudnn_attention, "import_module", missing)
    q, k, v = operands(16, 16, "cpu")
    with pytest.raises(KernelError, match="cannot be called here") as caught:
        attend(q, k, v, empty_scalars(q.device), torch.empty_like(q), 0.1)
    assert caught.value.fix == "pip install llvq[gpu]"
