"""The scales of a window against the dialect's rule."""

from __future__ import annotations

import pytest
import torch

from llvq.backends.triton.fp8_scales import NOTHING, History, told, window_scales
from llvq.backends.triton.specialize import Launcher
from llvq.formats import fp8
from llvq.formats.kv import KV_FORMATS
from tests.backends.triton.compiled import compiled, meta
from tests.backends.triton.test_fp8_window import DIM, HEADS, RandN, filled_pages


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_each_covers_its_chunk_and_its_pages(
    launch: Launcher, device: torch.device, randn: RandN, kv_format: str, rotated: bool
) -> None:
    k, v, q = (randn(1, tokens, HEADS, DIM) for tokens in (5, 5, 9))
    v[0, 3, 1, 2] = -70.0
    pages = filled_pages(randn, kv_format, 5, device)
    history = History(pages, torch.tensor([2, 0], device=device), 1, kv_format)
    found = window_scales(launch, k, v, q, told(history), rotated=rotated)
    turn = 2**0.5 if rotated else 1.0
    for which, (own, factor) in enumerate(((k, turn), (v, 1.0), (q, turn))):
        bounds = [own.abs().amax().float().view(1)]
        if which < 2:
            bounds.append(KV_FORMATS[kv_format].bound(pages, 1, which, history.table))
        wanted = fp8.scale_of(torch.cat(bounds).amax()) * factor
        assert torch.allclose(found[which], wanted, rtol=1e-6)


@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
@pytest.mark.parametrize("given", [{"k_scale"}, {"q_scale"}, {"k_scale", "q_scale"}])
def test_what_is_given_is_not_looked_for(
    launch: Launcher, device: torch.device, randn: RandN, kv_format: str, given: set[str]
) -> None:
    k, v, q = (randn(1, tokens, HEADS, DIM) for tokens in (5, 5, 9))
    history = told(
        History(filled_pages(randn, kv_format, 5, device), torch.tensor([2], device=device), 1,
                kv_format)
    )  # fmt: skip
    found = window_scales(launch, k, v, q, history, rotated=True)
    scales = {name: torch.rand(1, device=device) + 1 for name in sorted(given)}
    if "k_scale" in given:
        k = k * torch.nan
    if "q_scale" in given:
        q = fp8.encode(q, scales["q_scale"])
    again = window_scales(launch, k, v, q, history, rotated=True, **scales)
    for which, name in ((0, "k_scale"), (1, "v_scale"), (2, "q_scale")):
        assert torch.equal(again[which], scales[name][0] if name in given else found[which])


def test_without_pages_there_is_nothing_to_tell(launch: Launcher, randn: RandN) -> None:
    table = torch.empty(0, dtype=torch.int64)
    assert told(None) == told(History([], table, 3, "nvfp4")) == NOTHING
    k, v = torch.zeros(1, 3, HEADS, DIM), randn(1, 3, HEADS, DIM)
    scales = window_scales(launch, k.to(v), v, None, NOTHING, rotated=False)
    assert scales.tolist() == [1.0, fp8.scale_of(v.abs().amax()).item()]


def test_layers_and_pages_share_a_binary() -> None:
    made = set()
    for layer, pages in ((0, 1), (3, 2), (16, 3), (29, 16)):
        pool = [meta(30, 2, 16, 7040, 24, 64, dtype=torch.uint8),
                meta(30, 2, 16, 7040, 24, 8, dtype=torch.float8_e4m3fn),
                meta(30, 2, 16, dtype=torch.float32)]  # fmt: skip
        history = told(History(pool, meta(pages, dtype=torch.int64), layer, "nvfp4"))
        own = meta(1, 7040, 24, 128)
        launched = compiled("sm_90a", window_scales, own, own, None, history, rotated=False)
        made |= {kernel.binary.name for kernel in launched}
    assert len(made) == 2
