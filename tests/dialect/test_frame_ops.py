"""Ops of the way up, pixels and weights: those of torch and of the VAE on whole videos."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llvq.dialect import (
    channels_last_weight,
    conv3d_fp8,
    fp8_conv_weight,
    fp8_norm_scale,
    pixels,
    subpixel_weight,
    upsample_conv,
)
from llvq.dialect.frame_ops import duplicate_up
from llvq.dialect.ring_ops import FP8, FP8_MAX
from llvq.models import vae_resample

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [FP32, BF16])
H, W, C, N = 3, 5, 8, 4
LIMITS = {FP32: 1e-5, BF16: 2**-6}  # in bf16 a sum of taps is rounded, and products of it


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    off = (found.float() - wanted.float()).abs().amax()
    return bool(off <= LIMITS[dtype] * wanted.float().abs().amax())


def as_video(frames: Tensor) -> Tensor:
    return frames.movedim(-1, 0)[None]


def as_frames(video: Tensor) -> Tensor:
    return video[0].movedim(0, -1)


@DTYPES
@pytest.mark.parametrize("window", [(3, 3, 3), (3, 1, 1), (3, 3)])
def test_a_weight_has_its_channels_last(
    check_op: Any, randn: Any, dtype: torch.dtype, window: tuple[int, ...]
) -> None:
    weight = randn(N, C, *window, dtype=dtype)
    found = check_op(channels_last_weight, weight)
    assert found.shape == (N, *window, C) and found.is_contiguous()
    assert torch.equal(found.movedim(-1, 1), weight)


@DTYPES
def test_codes_of_a_weight_are_the_weight_but_for_a_sixteenth(
    check_op: Any, randn: Any, dtype: torch.dtype
) -> None:
    """E4M3 has three bits after the point, and the largest of a feature is its largest number."""
    weight = randn(N, C, 3, 3, 3, dtype=dtype) * torch.tensor([1, 100, 1e-3, 0]).view(
        -1, 1, 1, 1, 1
    )
    weight = weight.to(dtype)
    codes, scales = check_op(fp8_conv_weight, weight)
    assert codes.dtype == FP8 and codes.shape == (N, 3, 3, 3, C) and scales.dtype == FP32
    held = (codes.float() * scales.view(-1, 1, 1, 1, 1)).movedim(-1, 1)
    smallest = 2.0**-9 * scales.view(-1, 1, 1, 1, 1)  # between two subnormals
    assert ((held - weight.float()).abs() <= weight.float().abs() / 16 + smallest).all()
    assert codes.float().abs().flatten(1).amax(1).tolist() == [FP8_MAX] * 3 + [0]


@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-3, 1.0, 30.0]))
@settings(max_examples=25, deadline=None)
def test_no_normed_value_leaves_fp8(seed: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    x, gamma = torch.randn(50, 16, generator=random) ** 5, torch.randn(16, generator=random) * scale
    bound = fp8_norm_scale.reference(gamma, 4.0) * FP8_MAX
    x[0] = F.one_hot(gamma.abs().argmax(), 16) * gamma.sign()  # what comes closest
    normed = F.silu(F.normalize(x, dim=-1) * 4.0 * gamma)
    assert (normed.abs() <= bound).all()
    assert normed.abs().amax() > bound * (0.9 if scale > 1 else 0)


@pytest.mark.parametrize("shape", [(C,), (C, 1, 1, 1)])
def test_the_scale_of_a_norm(check_op: Any, randn: Any, shape: tuple[int, ...]) -> None:
    gamma = randn(*shape, dtype=BF16)
    found = check_op(fp8_norm_scale, gamma, 3.0)
    assert found.item() == pytest.approx(gamma.abs().max().item() * 3 / FP8_MAX)
    assert fp8_norm_scale.reference(torch.zeros(C), 3.0).tolist() == [1]


def ring_of(frames: Tensor, at: int) -> Tensor:
    """A ring of one slot more, whose border is zero, with the first of the frames in slot `at`."""
    slots = torch.zeros(len(frames) + 1, *frames.shape[1:]).to(frames)
    slots[(torch.arange(len(frames)) + at) % len(slots)] = frames
    return F.pad(slots, (0, 0, 1, 1, 1, 1))


@DTYPES
@pytest.mark.parametrize("decoded", [0, 2])
def test_a_convolution_at_twice_the_size_is_that_of_torch(
    check_op: Any, randn: Any, dtype: torch.dtype, decoded: int
) -> None:
    x, weight = randn(2, H, W, C, dtype=dtype), randn(N, C, 3, 3, dtype=dtype)
    bias = randn(N, dtype=dtype)
    first = 2 * (decoded - 1) + 1 if decoded else 0
    subpixel = check_op(subpixel_weight, weight)
    assert subpixel.shape == (2, 2, N, 2, 2, C)
    args = (None, False, False, torch.tensor(decoded), 2, 0, 2)
    found = check_op(upsample_conv, ring_of(x, first), subpixel, bias, *args)
    large = F.interpolate(x.movedim(-1, 1), scale_factor=2.0, mode="nearest-exact")
    wanted = F.conv2d(large, weight, bias, padding=1).movedim(1, -1)
    assert close(found, wanted, dtype)


@pytest.mark.parametrize("channels", [2, 4, 8, 16])
@pytest.mark.parametrize(("doubled", "first"), [(False, False), (True, False), (True, True)])
def test_the_shortcut_is_that_of_the_vae(
    randn: Any, channels: int, doubled: bool, first: bool
) -> None:
    x = randn(3, H, W, channels)
    wanted = vae_resample.duplicate_up(as_video(x), N, time=doubled, first=first)
    assert torch.equal(duplicate_up(x, N, doubled=doubled, first=first), as_frames(wanted))


@DTYPES
@pytest.mark.parametrize("first", [False, True])
def test_a_frame_alone_takes_its_part_of_the_shortcut(
    check_op: Any, randn: Any, dtype: torch.dtype, first: bool
) -> None:
    """Either of the two that one frame becomes: the second, where the first is dropped."""
    subpixel = subpixel_weight.reference(randn(N, C, 3, 3, dtype=dtype))
    ring, bias = ring_of(randn(1, H, W, C, dtype=dtype), 0), randn(N, dtype=dtype)
    shortcut, place = randn(1, H, W, C, dtype=dtype), (torch.tensor(0), 2, 0, 1)
    found = check_op(upsample_conv, ring, subpixel, bias, shortcut, True, first, *place)
    alone = upsample_conv.reference(ring, subpixel, bias, None, False, False, *place)
    both = vae_resample.duplicate_up(as_video(shortcut), N, time=True, first=False)
    assert torch.equal(found, alone + as_frames(both)[int(first)])


@DTYPES
@pytest.mark.parametrize("patch", [1, 2])
def test_pixels_are_those_of_the_vae_in_steps(
    check_op: Any, randn: Any, dtype: torch.dtype, patch: int
) -> None:
    x = randn(2, H, W, 3 * patch**2, dtype=dtype)
    found = check_op(pixels, x, patch)
    assert found.dtype == torch.uint8 and found.shape == (2, patch * H, patch * W, 3)
    unpacked = as_frames(vae_resample.depth_to_space(as_video(x.double()), patch))
    wanted = (unpacked.clamp(-1, 1) + 1) * 127.5
    assert (found - wanted).abs().amax() <= 0.5 + 1e-4
    assert found.min() == 0 and found.max() == 255


def test_pixels_of_other_colours_are_refused() -> None:
    with pytest.raises(ValueError, match="4 channels are not 3 colours of 1x1 pixels"):
        pixels.overload(torch.empty(1, H, W, 4, device="meta"), 1)


@DTYPES
def test_a_convolution_in_fp8_multiplies_codes(
    check_op: Any, randn: Any, dtype: torch.dtype
) -> None:
    x, scale = randn(1, C, 4, H, W, dtype=dtype), torch.tensor([0.02])
    codes, scales = fp8_conv_weight.reference(randn(N, C, 3, 3, 3))
    bias = randn(N, dtype=dtype)
    found = check_op(conv3d_fp8, x, scale, codes, scales, bias)
    held = (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).double() * scale
    weight = codes.double().movedim(-1, 1) * scales.view(-1, 1, 1, 1, 1)
    wanted = F.conv3d(held, weight, bias.double(), padding=(0, 1, 1))
    assert found.dtype == dtype and found.shape == (1, N, 2, H, W)
    assert close(found, wanted, dtype)
