"""cuDNN's attention as an implementation: all around it on any machine, itself on a GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from llvq.backends import cudnn_attention
from llvq.backends.cudnn_attention import MAXIMA, SCALARS
from llvq.backends.implementations import find_implementation
from llvq.backends.triton import fp8_attention_cudnn
from llvq.backends.triton.launchers import Collector
from llvq.backends.triton.specialize import Launcher
from llvq.dialect import DIALECT
from llvq.errors import TargetError
from llvq.formats import fp8
from tests.backends.triton.compiled import compiled, meta
from tests.backends.triton.test_fp8_attention import error
from tests.backends.triton.test_fp8_expand import at_5b
from tests.backends.triton.test_fp8_window import HEADS, RandN, filled_pages

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and cuDNN")
NO_POOL = "PYTORCH_NO_CUDA_MEMORY_CACHING"  # PyTorch's, for compute-sanitizer
DIM = fp8_attention_cudnn.HEAD_DIM
PAGED, PLAIN = "paged_attention_quantize_fp8", "attention_quantize_fp8"


def in_torch(q: Tensor, k: Tensor, v: Tensor, scalars: Tensor, out: Tensor, scale: float) -> None:
    """What cuDNN is asked for, in fp32."""
    given = dict(zip((*SCALARS, *MAXIMA), scalars[:, 0], strict=True))
    assert given["descale_s"] * given["scale_s"] == 1
    q, k, v = (x.transpose(0, 1).float() * given[f"descale_{name}"] for name, x in
               (("q", q), ("k", k), ("v", v)))  # fmt: skip
    found = (q @ k.mT * scale).softmax(-1) @ v
    out.copy_(fp8.encode(found.transpose(0, 1), 1 / given["scale_o"]))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    if device.type != "cuda":
        monkeypatch.setattr(cudnn_attention, "attend", in_torch)


def off(launch: Launcher, op: str, args: tuple[Any, ...]) -> float:
    """How far what it decodes to is from the reference's."""
    wanted = DIALECT[op].reference(*args)
    found = find_implementation("triton:cudnn", op)(launch, *args)
    assert torch.allclose(found[1], wanted[1], rtol=1e-6)
    return error(*(values.float() * scales for values, scales in (found, wanted)))


def paged(
    randn: RandN, device: torch.device, tokens: int, slots: list[int], rotated: bool
) -> tuple[Any, ...]:
    q, k, v = (randn(1, tokens, HEADS, DIM) for _ in range(3))
    pages = filled_pages(randn, "nvfp4", tokens, device, dim=DIM)
    table = torch.tensor(slots, dtype=torch.int64, device=device)
    turns = randn(3 * tokens, DIM // 2, dtype=torch.float32)
    cos, sin = (turns.cos(), turns.sin()) if rotated else (None, None)
    return (q, k, v, pages, table, cos, sin, None, 1, "nvfp4")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("slots", [[], [2, 0]])
def test_pages_are_attended(
    launch: Launcher,
    device: torch.device,
    randn: RandN,
    slots: list[int],
    rotated: bool,
) -> None:
    args = paged(randn, device, 256 if device.type == "cuda" else 24, slots, rotated)
    assert off(launch, PAGED, args) <= DIALECT[PAGED].tolerance.relative


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("slots", [[], [2, 0]])
def test_scales_may_be_given(
    launch: Launcher, device: torch.device, randn: RandN, slots: list[int]
) -> None:
    args = paged(randn, device, 256 if device.type == "cuda" else 24, slots, rotated=False)
    q_scale, k_scale = (torch.tensor([scale], device=device) for scale in (0.04, 0.3))
    queries = fp8.encode(args[0], q_scale)
    given = (queries, *args[1:], q_scale, k_scale)
    assert off(launch, PAGED, given) <= DIALECT[PAGED].tolerance.relative
    plain = (*given[:3], 0.2, q_scale)
    assert off(launch, PLAIN, plain) <= DIALECT[PLAIN].tolerance.relative


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("scale", [None, 0.2])
def test_keys_may_be_others_than_those_of_the_queries(
    launch: Launcher, device: torch.device, randn: RandN, scale: float | None
) -> None:
    tokens, keys = (256, 512) if device.type == "cuda" else (9, 20)
    q, k, v = (randn(1, count, HEADS, DIM) for count in (tokens, keys, keys))
    args = (q, k, v, scale)
    assert off(launch, PLAIN, args) <= DIALECT[PLAIN].tolerance.relative


@gpu
def test_it_repeats_itself(launch: Launcher, device: torch.device, randn: RandN) -> None:
    args = paged(randn, device, 256, [2, 0], rotated=False)
    op = find_implementation("triton:cudnn", PAGED)
    (values, scales), again = op(launch, *args), op(launch, *args)
    assert torch.equal(values.view(torch.uint8), again[0].view(torch.uint8))
    assert torch.equal(scales, again[1])


@gpu
@pytest.mark.skipif(NO_POOL in os.environ, reason=f"{NO_POOL}: no graph has memory of its own")
def test_it_can_be_recorded(launch: Launcher, device: torch.device, randn: RandN) -> None:
    args = paged(randn, device, 256, [2, 0], rotated=False)
    op = find_implementation("triton:cudnn", PAGED)
    values, scales = op(launch, *args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = op(launch, *args)
    recorded[0].view(torch.uint8).fill_(0xAA)
    graph.replay()
    assert torch.equal(values.view(torch.uint8), recorded[0].view(torch.uint8))
    assert torch.equal(scales, recorded[1])


def test_on_meta_its_kernels_are_seen() -> None:
    q, _, history = at_5b("nvfp4")
    args = (q, q, q, history.pages, history.table, None, None, None, 3, "nvfp4")
    collect = Collector()
    values, scales = find_implementation("triton:cudnn", PAGED)(collect, *args)
    assert (values.shape, values.dtype) == ((1, 7040, 24 * 128), fp8.DTYPE)
    assert (scales.shape, scales.dtype) == ((1, 7040, 1), torch.float32)
    names = {kernel.__name__ for kernel in collect.wanted.values()}
    assert names == {"maxima_kernel", "scales_kernel", "expand_kernel", "scalars_kernel"}
    made = compiled("sm_90a", find_implementation("triton:cudnn", PAGED), *args)
    assert all(kernel.resources.spilled == 0 for kernel in made)


def test_with_scales_given_one_kernel_less_reads_queries() -> None:
    k, _, history = at_5b("nvfp4")
    one = meta(1, dtype=torch.float32)
    rest = (history.pages, history.table, None, None, None, 3, "nvfp4", one, one)
    made = compiled(
        "sm_90a", find_implementation("triton:cudnn", PAGED), k.to(fp8.DTYPE), k, k, *rest
    )
    names = sorted(kernel.binary.entry for kernel in made)
    assert names.count("expand_kernel") == 1 and len(names) == 4
    assert all(kernel.resources.spilled == 0 for kernel in made)


def test_other_heads_are_refused() -> None:
    x = meta(1, 6, 2, 64)
    with pytest.raises(TargetError, match="not used for heads of 64 channels"):
        fp8_attention_cudnn.attention_quantize_fp8(Collector(), x, x, x)
