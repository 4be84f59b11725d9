"""Convolutions of a graph as shapes, and what cuDNN does at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from llvq.bench.timing import measure
from llvq.graphs.cost import CONVOLUTIONS, SUBPIXEL_CONVOLUTION
from llvq.runtime.bind import op_of

CHANNELS_FIRST = ("aten.conv2d.default", "aten.conv3d.default")


@dataclass(frozen=True)
class Convolution:
    """`out` frames, height and width of what it makes; `window` in the same order."""

    out: tuple[int, ...]
    channels: int
    features: int
    window: tuple[int, ...]

    @property
    def text(self) -> str:
        return f"{_times(self.out)} {self.channels}->{self.features} {_times(self.window)}"

    @property
    def flop(self) -> int:
        return 2 * prod(self.out) * self.channels * self.features * prod(self.window)

    def cudnn_rate(self, device: torch.device, repeats: int) -> float:
        """TFLOP/s of F.conv3d in bf16 without padding, channels last."""
        like: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
        sizes = (size + taps - 1 for size, taps in zip(self.out, self.window, strict=True))
        x = _channels_last(torch.randn(1, self.channels, *sizes, **like))
        w = _channels_last(torch.randn(self.features, self.channels, *self.window, **like))
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            time = measure([lambda: F.conv3d(x, w)], device, repeats=repeats)
        return self.flop / time.median / 1e12


def convolution_of(node: Node) -> Convolution | None:
    """What a node convolves, bound to a kernel or not; None of any other op."""
    op = op_of(node)
    name = str(node.target) if op is None else f"llvq.{op}.default"
    if name == SUBPIXEL_CONVOLUTION:
        features, *window, channels = _shape(node.args[1])[2:]
        return Convolution(_shape(node)[:3], channels, features, (1, *window))
    if name not in CONVOLUTIONS:
        return None
    weight = _shape(node.args[CONVOLUTIONS[name]])
    if name in CHANNELS_FIRST:
        features, channels, *window = weight
        out = _shape(node)[2:]
        one = (1,) * (3 - len(out))
        return Convolution((*one, *out), channels, features, (*one, *window))
    features, *window, channels = weight
    out = _shape(node)[2:] if op == "conv3d_fp8" else _shape(node)[:3]
    if op == "ring_conv":
        out = (int(node.args[10]), *out[1:])  # type: ignore[call-overload]  # `doubles` makes two
    return Convolution(out, channels, features, tuple(window))


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last_3d)
