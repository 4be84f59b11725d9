"""The window in FP8 against the dialect's formats: every page format, rotated or not, odd sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llvq.backends.triton.fp8_scales import History
from llvq.backends.triton.fp8_window import KEYS, rows_in_fp8, window_fp8, window_in_fp8
from llvq.backends.triton.specialize import Launcher
from llvq.dialect import DIALECT, rope
from llvq.errors import TargetError
from llvq.formats import fp8
from llvq.formats.kv import KV_FORMATS

LAYERS, SLOTS, HEADS, DIM = 2, 3, 2, 32
RandN = Callable[..., Tensor]


def filled_pages(
    randn: RandN, kv_format: str, tokens: int, device: torch.device, dim: int = DIM
) -> list[Tensor]:
    """A pool whose every slot holds something, written by the format's own code."""
    specs = KV_FORMATS[kv_format].specs(LAYERS, SLOTS, tokens, HEADS, dim, torch.bfloat16)
    pages = [torch.zeros(shape, dtype=dtype, device=device) for _, dtype, shape in specs]
    for layer in range(LAYERS):
        for which in (0, 1):
            for slot in range(SLOTS):
                chunk = randn(tokens, HEADS, dim) * (1 + slot + which)
                place = torch.tensor(slot, device=device)
                KV_FORMATS[kv_format].write(pages, layer, which, place, chunk)
    return pages


def expected(
    own: Tensor, history: History | None, which: int, angles: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Codes [W, H, D] and scale, from the dialect's own pieces."""
    bounds, window = [own.abs().amax().float().view(1)], own[0].float()
    if history is not None:
        kv = KV_FORMATS[history.kv_format]
        place = (history.pages, history.layer, which, history.table)
        bounds.append(kv.bound(*place))
        window = torch.cat([kv.read(*place, torch.float32), window])
    if angles is not None and which == 0:
        turned = rope.reference(window[None].to(own.dtype), *(t[: len(window)] for t in angles))
        window = turned[0].float()
        bounds = [bound * 2**0.5 for bound in bounds]
    scale = fp8.scale_of(torch.cat(bounds).amax())
    return fp8.encode(window, scale), scale


def keys_in_order(v: Tensor) -> Tensor:
    """V [H, D, W] with every key at its own place: 4t + 2j + e of a group holds key 8j + 2t + e."""
    groups = v.unflatten(-1, (-1, 4, 2, 2))  # [.., t, j, e]
    return groups.transpose(-3, -2).flatten(-4)


def close(found: Tensor, wanted: Tensor) -> bool:
    """Codes are equal, or neighbours: a factor and a quotient round differently."""
    distance = (found.float() - wanted.float()).abs()
    return bool((distance <= wanted.float().abs() / 7 + 2**-8).all())


@pytest.mark.parametrize("tokens", [5, 48, 64, 128])
@pytest.mark.parametrize("kv_format", ["none", "fp8", "nvfp4"])
def test_history_and_chunk_are_in_the_window(
    launch: Launcher, device: torch.device, randn: RandN, kv_format: str, tokens: int
) -> None:
    k, v = randn(1, tokens, HEADS, DIM), randn(1, tokens, HEADS, DIM)
    pages = filled_pages(randn, kv_format, tokens, device)
    history = History(pages, torch.tensor([2, 0], device=device), 1, kv_format)
    window = window_in_fp8(launch, k, v, history)
    assert window.keys == 3 * tokens and window.k.shape[1] % KEYS == 0
    for which, (own, found) in enumerate(((k, window.k), (v, keys_in_order(window.v).mT))):
        codes, scale = expected(own, history, which, None)
        assert torch.allclose(window.scales[which], scale, rtol=1e-6)
        assert close(found[:, : window.keys], codes.transpose(0, 1))
        assert not found[:, window.keys :].float().any()


def test_a_chunk_alone_is_a_window(launch: Launcher, randn: RandN) -> None:
    k, v = randn(1, 9, HEADS, DIM), randn(1, 9, HEADS, 2 * DIM)[..., :DIM]
    window = window_in_fp8(launch, k, v)
    codes, scale = expected(v, None, 1, None)
    assert torch.allclose(window.scales[1], scale, rtol=1e-6)
    assert close(keys_in_order(window.v).mT[:, :9], codes.transpose(0, 1))


@pytest.mark.parametrize("keys", [9, 128, 131])
def test_the_op_gives_the_layout_that_its_reference_has(
    launch: Launcher, randn: RandN, keys: int
) -> None:
    k, v = randn(1, keys, 2 * HEADS, DIM).chunk(2, 2)
    found, wanted = window_fp8(launch, k, v), DIALECT["window_fp8"].reference(k, v)
    assert torch.allclose(found[2], wanted[2], rtol=1e-6)
    for ours, theirs in zip(found[:2], wanted[:2], strict=True):
        assert ours.shape == theirs.shape and close(ours, theirs)
    again = window_fp8(launch, k, v)
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8))
               for a, b in zip(found, again, strict=True))  # fmt: skip


def test_keys_are_rotated_by_their_place(
    launch: Launcher, device: torch.device, randn: RandN
) -> None:
    tokens = 7
    k, v = randn(1, tokens, HEADS, DIM), randn(1, tokens, HEADS, DIM)
    pages = filled_pages(randn, "nvfp4", tokens, device)
    history = History(pages, torch.tensor([1], device=device), 0, "nvfp4")
    turns = randn(5 * tokens, DIM // 2, dtype=torch.float32)
    angles = (turns.cos(), turns.sin())
    window = window_in_fp8(launch, k, v, history, angles)
    codes, scale = expected(k, history, 0, angles)
    assert torch.allclose(window.scales[0], scale, rtol=1e-6)
    found = window.k[:, : window.keys].float() * window.scales[0]
    wanted = codes.transpose(0, 1).float() * scale
    assert (found - wanted).norm() <= 0.03 * wanted.norm()
    assert close(
        keys_in_order(window.v).mT[:, : window.keys],
        expected(v, history, 1, None)[0].transpose(0, 1),
    )


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("slots, tokens", [([], 9), ([2, 0], 5), ([2, 0], 48), ([1], 64)])
def test_rows_are_as_they_come(
    launch: Launcher,
    device: torch.device,
    randn: RandN,
    slots: list[int],
    tokens: int,
    rotated: bool,
) -> None:
    q, k, v = randn(1, tokens, 3 * HEADS, 2 * DIM).unflatten(2, (3, HEADS)).unbind(2)
    pages = filled_pages(randn, "nvfp4", tokens, device, dim=2 * DIM)
    history = History(pages, torch.tensor(slots, dtype=torch.int64, device=device), 1, "nvfp4")
    turns = randn(3 * tokens, DIM, dtype=torch.float32)
    angles = (turns.cos(), turns.sin()) if rotated else None
    rows = rows_in_fp8(launch, q, k, v, history, angles)
    for which, (own, found) in enumerate(((k, rows.k), (v, rows.v))):
        codes, scale = expected(own, history, which, angles)
        assert torch.allclose(rows.scales[which], scale, rtol=1e-6)
        assert close(found, codes)
    last = [t[len(slots) * tokens :] for t in angles] if angles else None
    codes, scale = expected(q, None, 0, last)
    assert torch.allclose(rows.scales[2], scale, rtol=1e-6)
    assert close(rows.q, codes)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(launch: Launcher, randn: RandN, poison: float) -> None:
    k, v = randn(1, 6, HEADS, DIM), randn(1, 6, HEADS, DIM)
    v[0, 3, 1, 4] = poison
    scales = window_in_fp8(launch, k, v).scales
    assert scales[0].isfinite() and not scales[1].isfinite()


def test_what_it_has_not_is_refused(launch: Launcher, randn: RandN, device: torch.device) -> None:
    x = randn(1, 6, 2, 48)
    with pytest.raises(TargetError, match="heads of 48 channels"):
        window_in_fp8(launch, x, x)
    x = randn(1, 6, 2, 64)
    history = History([], torch.tensor([0], device=device), 0, "int4")
    with pytest.raises(TargetError, match="int4 pages"):
        window_in_fp8(launch, x, x, history)
