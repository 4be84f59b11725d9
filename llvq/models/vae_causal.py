"""Convolution over time that sees only the past, with its memory outside the module.

A causal convolution needs the last input frames of the call before. These frames, one slot per
convolution, are the whole temporal state of the VAE: tensors in, tensors out, fixed shapes, zeros
at the start of a video. So a video may be cut into calls anywhere, and gives the same frames.

Shapes: B batch, C channels, T frames, H and W height and width at that depth.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class TemporalState:
    """The slots of one call, visited in execution order. `next` collects those of the next call."""

    def __init__(self, slots: Iterable[Tensor]) -> None:
        self._slots = iter(slots)
        self.next: list[Tensor] = []

    def read_slot(self, x_BCTHW: Tensor, frames: int) -> Tensor:
        """The slot whose turn it is: (B, C, frames, H, W)."""
        return next(self._slots)

    def extend(self, x_BCTHW: Tensor, frames: int, context: Tensor | None = None) -> Tensor:
        """The slot's frames, or those of `context`, then `x`: (B, C, frames+T, H, W)."""
        slot = self.read_slot(x_BCTHW, frames)
        joined = torch.cat([slot if context is None else context, x_BCTHW], dim=2)
        # A copy: a view would keep all of `joined` alive until the next call.
        self.next.append(joined[:, :, -frames:].clone())
        return joined


class StartState(TemporalState):
    """The state before a video's first frame: zeros, in the shape each convolution asks for."""

    def __init__(self) -> None:
        super().__init__(())

    def read_slot(self, x_BCTHW: Tensor, frames: int) -> Tensor:
        B, C, _, H, W = x_BCTHW.shape
        return x_BCTHW.new_zeros(B, C, frames, H, W)


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution, padded in space and continued from the state in time.

    With kernel 3 over time it has a slot: 2 frames at stride 1, 1 frame at stride 2. With kernel 1
    it has none.
    """

    def __init__(
        self, in_dim: int, out_dim: int, kernel: tuple[int, int, int], *, time_stride: int = 1
    ) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_dim, out_dim, kernel, stride=(time_stride, 1, 1), padding=padding)
        self.context_frames = kernel[0] - time_stride

    def forward(
        self, x_BCTHW: Tensor, state: TemporalState | None = None, context: Tensor | None = None
    ) -> Tensor:
        """(B, in_dim, T, H, W) to (B, out_dim, T // time_stride, H, W); T = 0 is allowed.

        `context` (B, in_dim, context_frames, H, W) replaces what the slot holds.
        """
        if state is None or not self.context_frames:
            return super().forward(x_BCTHW)
        joined = state.extend(x_BCTHW, self.context_frames, context)
        if not x_BCTHW.shape[2]:
            B, _, _, H, W = x_BCTHW.shape
            return x_BCTHW.new_empty(B, self.out_channels, 0, H, W)
        return super().forward(joined)


def slot_names(module: nn.Module) -> tuple[str, ...]:
    """Paths of the convolutions of `module` that own a slot, in the order of the slots."""
    return tuple(
        name
        for name, child in module.named_modules()
        if isinstance(child, CausalConv3d) and child.context_frames
    )
