"""Ring ops: convolutions of frames in rings are those of torch over all frames at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llvq.dialect import ring_conv, ring_write, ring_write_normed
from llvq.dialect.ring_ops import FP8, FP8_MAX, conv_channels_last, first_frame, ring_slots

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [FP32, BF16])
H, W, C, N = 3, 5, 6, 7
# Rounding of each of a few sums of C * 27 products.
LIMITS = {FP32: 1e-5, BF16: 2**-7}


def ring_of(slots: int, dtype: torch.dtype = FP32, channels: int = C) -> Tensor:
    return torch.zeros(slots, H + 2, W + 2, channels).to(dtype)


def latents(number: int) -> Tensor:
    return torch.tensor(number)


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    off = (found.float() - wanted.float()).abs().amax()
    return bool(off <= LIMITS[dtype] * wanted.float().abs().amax())


def frames_in(count: int, rate: int, skip: int) -> int:
    """How many frames of `count` latents go into a ring."""
    return max(1 + rate * (count - 1) - skip, 0) if count else 0


calls_of_a_video = st.lists(st.integers(1, 4), min_size=1, max_size=6)
rates, skips = st.sampled_from([1, 2, 4]), st.sampled_from([0, 1])


@given(calls=calls_of_a_video, rate=rates, skip=skips)
@settings(max_examples=50, deadline=None)
def test_every_frame_is_where_the_one_before_it_ends(
    calls: list[int], rate: int, skip: int
) -> None:
    """Calls of any number of latents hand over frame after frame, none twice."""
    seen, slots = 0, rate * max(calls) + 2
    for before, count in zip([sum(calls[:i]) for i in range(len(calls))], calls, strict=True):
        new = frames_in(before + count, rate, skip) - frames_in(before, rate, skip)
        assert int(first_frame(latents(before), rate, skip)) == seen
        found = ring_slots(ring_of(slots), latents(before), rate, skip, 0, new, context=2)
        assert found.tolist() == [(seen + i) % slots for i in range(-2, new)]
        assert len(set(found.tolist())) == new + 2  # no frame lies where another does
        seen += new


@given(
    calls=calls_of_a_video, rate=rates, skip=skips, alone=st.booleans(), seed=st.integers(0, 2**16)
)
@settings(max_examples=25, deadline=None)
def test_a_video_in_calls_is_convolved_as_a_whole(
    calls: list[int], rate: int, skip: int, alone: bool, seed: int
) -> None:
    """As by one conv3d over all frames behind two of zeros; frame by frame if `alone`."""
    random = torch.Generator().manual_seed(seed)
    count = frames_in(sum(calls), rate, skip)
    video = torch.randn(count, H, W, C, generator=random)
    weight = torch.randn(N, 3, 3, 3, C, generator=random)
    bias = torch.randn(N, generator=random)
    ring = ring_of(3 if alone else rate * max(calls) + 2)
    made, at = list[Tensor](), 0
    for before, latent_count in zip(
        [sum(calls[:i]) for i in range(len(calls))], calls, strict=True
    ):
        new = frames_in(before + latent_count, rate, skip) - at
        place = (latents(before), rate, skip)
        for offset, frames in [(i, 1) for i in range(new)] if alone else [(0, new)]:
            part = video[at + offset : at + offset + frames]
            if len(part):
                ring_write.reference(ring, part, *place, offset)
                made.append(ring_conv.reference(ring, weight, bias, None, None, None, *place,
                                                offset, frames, False))  # fmt: skip
        at += new
    if not count:
        return
    padded = F.pad(video.movedim(-1, 0)[None], (1, 1, 1, 1, 2, 0))
    wanted = F.conv3d(padded, weight.movedim(-1, 1), bias)[0].movedim(0, -1)
    assert close(torch.cat(made), wanted, FP32)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP8])
@pytest.mark.parametrize(("decoded", "offset"), [(0, 0), (3, 1)])
def test_frames_are_written_inside_their_border(
    opcheck: Any, randn: Any, dtype: torch.dtype, decoded: int, offset: int
) -> None:
    ring, x = randn(5, H + 2, W + 2, C).to(dtype), randn(2, H, W, C).to(dtype)
    if dtype != FP8:
        opcheck(ring_write, (ring.clone(), x, latents(decoded), 2, 0, offset))
    before = ring.clone()
    ring_write.overload(ring, x, latents(decoded), 2, 0, offset)
    first = (2 * (decoded - 1) + 1 if decoded else 0) + offset
    wanted = before.float()
    for i, frame in enumerate(x.float()):
        wanted[(first + i) % 5, 1:-1, 1:-1] = frame
    assert torch.equal(ring.float(), wanted)


@DTYPES
def test_norm_and_silu_are_those_of_the_vae(opcheck: Any, randn: Any, dtype: torch.dtype) -> None:
    """As `RmsNorm` and SiLU have it, on [1, C, T, H, W]."""
    x, gamma, factor = randn(2, H, W, C, dtype=dtype), randn(C, dtype=dtype), math.sqrt(C)
    ring = randn(4, H + 2, W + 2, C, dtype=dtype)
    args = (x, gamma, factor, None, latents(2), 1, 0, 0)
    opcheck(ring_write_normed, (ring.clone(), *args))
    ring_write_normed.overload(ring, *args)
    video = x.movedim(-1, 0)[None]
    wanted = F.silu(F.normalize(video, dim=1) * factor * gamma.view(-1, 1, 1, 1))
    assert close(ring[[2, 3], 1:-1, 1:-1], wanted[0].movedim(0, -1), dtype)


def test_an_fp8_ring_holds_codes_of_its_scale(randn: Any) -> None:
    x, gamma, factor = randn(2, H, W, C), randn(C) * 3, math.sqrt(C)
    ring, scale = ring_of(4, FP8), torch.tensor([0.01])
    ring_write_normed.overload(ring, x, gamma, factor, scale, latents(0), 1, 0, 0)
    normed = F.silu(F.normalize(x, dim=-1) * factor * gamma)
    codes = (normed / 0.01).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    assert torch.equal(ring[:2, 1:-1, 1:-1].float(), codes.float())
    assert (codes.float().abs() == FP8_MAX).any()


def written(randn: Any, dtype: torch.dtype, slots: int = 4) -> Tensor:
    """A full ring with a border of zeros."""
    inside = randn(slots, H, W, C, dtype=dtype)
    return F.pad(inside, (0, 0, 1, 1, 1, 1))


@DTYPES
@pytest.mark.parametrize("window", [3, 1])
@pytest.mark.parametrize("residual", [False, True])
def test_a_convolution_is_that_of_torch(
    check_op: Any, randn: Any, dtype: torch.dtype, window: int, residual: bool
) -> None:
    ring, bias = written(randn, dtype), randn(N, dtype=dtype)
    weight = randn(N, 3, window, window, C, dtype=dtype)
    extra = randn(2, H, W, N, dtype=dtype) if residual else None
    found = check_op(
        ring_conv, ring, weight, bias, None, None, extra, latents(2), 2, 1, 1, 2, False
    )
    # Its first frame is 2 * (2 - 1) + 1 - 1 + 1 = 3: frames 1 to 4 of the video.
    x = ring[[1, 2, 3, 0]].movedim(-1, 0)[None]
    x = x if window == 3 else x[..., 1:-1, 1:-1]
    wanted = F.conv3d(x, weight.movedim(-1, 1), bias)[0].movedim(0, -1)
    assert close(found, wanted if extra is None else wanted + extra, dtype)


@DTYPES
def test_halves_of_the_features_become_frames(
    check_op: Any, randn: Any, dtype: torch.dtype
) -> None:
    ring, weight, bias = written(randn, dtype), randn(8, 3, 1, 1, C, dtype=dtype), randn(8)
    args = (None, None, None, latents(2), 2, 1, 0, 2)
    found = check_op(ring_conv, ring, weight, bias.to(dtype), *args, True)
    whole = ring_conv.reference(ring, weight, bias.to(dtype), *args, False)
    assert found.shape == (4, H, W, 4)
    wanted = torch.stack(
        [whole[0, ..., :4], whole[0, ..., 4:], whole[1, ..., :4], whole[1, ..., 4:]]
    )
    assert torch.equal(found, wanted)


def test_fp8_products_are_scaled_before_the_bias(randn: Any) -> None:
    ring, weight = written(randn, FP32).to(FP8), randn(N, 3, 3, 3, C).to(FP8)
    bias, scale, scales = randn(N, dtype=BF16), torch.tensor([0.25]), randn(N).abs()
    args = (ring, weight, bias, scale, scales, None, latents(2), 1, 0, 0, 2, False)
    found = ring_conv.overload(*args)
    assert found.dtype == BF16
    x = ring.float()[[0, 1, 2, 3]].movedim(-1, 0)[None]
    products = F.conv3d(x, weight.float().movedim(-1, 1))[0].movedim(0, -1)
    assert close(found, products * scales * 0.25 + bias.float(), BF16)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_frames_are_convolved_alone(randn: Any, dtype: torch.dtype) -> None:
    """To the bit: how many go in at once changes nothing."""
    x, weight, bias = (randn(*shape, dtype=dtype)
                       for shape in ((6, H + 2, W + 2, C), (N, 3, 3, 3, C), (N,)))  # fmt: skip
    whole = conv_channels_last(x, weight, bias, None, None)
    parts = [conv_channels_last(x[i : i + 3], weight, bias, None, None) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts))


def test_what_does_not_fit_is_refused(randn: Any) -> None:
    ring, x, none = ring_of(3), randn(2, H, W, C), (None, None, None)
    place = (latents(0), 1, 0, 0)
    weight, bias = randn(N, 3, 3, 3, C), randn(N)
    meta = torch.device("meta")

    def refused(op: Any, *args: Any) -> str:
        on_meta = [a.to(meta) if isinstance(a, Tensor) else a for a in args]
        with pytest.raises(ValueError) as caught:
            op.overload(*on_meta)
        return str(caught.value)

    assert "do not lie in a ring" in refused(ring_write, ring, x[:, 1:], *place)
    assert "4 frames at once in a ring of 3" in refused(ring_write, ring, randn(4, H, W, C), *place)
    assert "the ring holds" in refused(ring_write, ring, x.to(BF16), *place)
    normed = (x, randn(C), 1.0)
    assert "with scale" in refused(ring_write_normed, ring, *normed, randn(1), *place)
    assert "without scale" in refused(ring_write_normed, ring.to(FP8), *normed, None, *place)
    assert "the weight reads 5" in refused(
        ring_conv, ring, weight[..., 1:], bias, *none, *place, 1, False
    )
    assert "do not fit" in refused(ring_conv, ring, weight, bias, *none, *place, 2, False)
    assert "a weight of" in refused(ring_conv, ring, weight.to(FP8), bias, *none, *place, 1, False)
