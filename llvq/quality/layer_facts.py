"""What calibration put beside a quantized linear, read back from a program to measure the linear.

A branch is always a weight of the program. A smoothing scale that was folded into a norm is not:
then it must be in the checkpoint, and a layer whose scale is in neither cannot be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from llvq.sources import TensorSource


@dataclass(frozen=True)
class Beside:
    """`scale` is the static scale of the input, fp32 []; smooth [K], down [R, K] and up [N, R] were
    taken out of the weight that is stored. None is what the layer does not have."""

    scale: Tensor | None = None
    smooth: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    def whole(self, residual: Tensor, start: int) -> Tensor:
        """Rows of the weight [n, K] that the linear stands for, from those that are stored."""
        if self.down is not None and self.up is not None:
            up = self.up[start : start + residual.shape[0]]
            residual = residual + up.float() @ self.down.float()
        return residual if self.smooth is None else residual * self.smooth.float()

    def smoothed(self, x: Tensor) -> Tensor:
        return x if self.smooth is None else x * self.smooth.to(x.dtype)

    def with_branch(self, y: Tensor, x: Tensor) -> Tensor:
        """y [.., N] and what the branch adds for the smoothed x [.., K]."""
        if self.down is None or self.up is None:
            return y
        return y + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def beside(
    facts: Mapping[str, Any],
    target: str,
    index: int,
    rows: slice,
    tensors: Mapping[str, Tensor],
    source: TensorSource,
) -> Beside | None:
    """What stands beside part `index` of the stacked weight `target`; None if it cannot be known.

    `facts` is the part's entry in the manifest. A weight that was packed before keeps its facts out
    of this: the BF16 program, too, smooths its input and adds its branch.
    """
    scale = str(facts.get("input_scale", "")).removesuffix(".input_scale")
    static = tensors.get(f"{scale}.activation_scale")
    if facts.get("packed"):
        return Beside(scale=static)
    smooth = facts.get("pre_quant_scale")
    found = None
    if smooth is not None:
        if smooth not in tensors and smooth not in source.names():
            return None
        found = tensors[smooth] if smooth in tensors else source.read(smooth)
    if "lora_down" not in facts:
        return Beside(static, found)
    if f"{target}.lora_down" not in tensors:
        return Beside(static, found, tensors[facts["lora_down"]], tensors[facts["lora_up"]])
    rank = facts["rank"]
    down = tensors[f"{target}.lora_down"][index * rank : (index + 1) * rank]
    return Beside(static, found, down, tensors[f"{target}.lora_up"][rows])
