"""What of a weight is left to quantize once smoothing and a low-rank branch are taken out of it.

`W / s - up @ down`, in fp32 and a few rows at a time, where s multiplies the input of the linear
instead and the branch adds the product back. All three are taken as the graph holds them: rounded
to its dtype first, so that what the rounding loses is quantized with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llvq.calibration import LayerFacts
from llvq.errors import FormatError
from llvq.formats.nvfp4 import amax_of
from llvq.sources import PackedWeight, TensorSource, TensorSpec


def residual_of(
    source: TensorSource, weight: str, facts: LayerFacts, dtype: torch.dtype | None
) -> TensorSource:
    """The source, in which a weight reads as what is left of it to quantize.

    `dtype`: what the graph holds the facts in; None is that of the weight. Raises FormatError.
    """
    if facts.pre_quant_scale is None and facts.lora_down is None:
        return source
    return ResidualSource(source, weight, facts, dtype or source.spec(weight).dtype)


def block_amax(source: TensorSource, name: str | None, start: int, count: int) -> Tensor | None:
    """Rows of the magnitudes [N, K/16] that blocks are scaled for, None where nothing names them.

    Raises FormatError if one is negative.
    """
    if name is None:
        return None
    rows = source.read_rows(name, start, start + count)
    if (rows < 0).any():
        raise _spoiled(name, "negative", "it is the largest magnitude of a block of the weight")
    return rows


class ResidualSource:
    """A source in which one weight [N, K] reads as its residual, fp32. It is packed nowhere.

    Raises FormatError, naming the tensor, for a scale that cannot be divided by and for a branch
    that is not finite.
    """

    def __init__(
        self, source: TensorSource, weight: str, facts: LayerFacts, dtype: torch.dtype
    ) -> None:
        self._source, self._weight, self._dtype = source, weight, dtype
        self._smooth = self._read(facts.pre_quant_scale, positive=True)
        self._down = self._read(facts.lora_down, positive=False)
        self._up = self._read(facts.lora_up, positive=False)

    def names(self) -> Sequence[str]:
        return self._source.names()

    def spec(self, name: str) -> TensorSpec:
        spec = self._source.spec(name)
        return TensorSpec(torch.float32, spec.shape) if name == self._weight else spec

    def read(self, name: str) -> Tensor:
        if name != self._weight:
            return self._source.read(name)
        return self.read_rows(name, 0, self.spec(name).shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        rows = self._source.read_rows(name, start, stop)
        if name != self._weight:
            return rows
        rows = rows.float()
        if self._smooth is not None:
            rows = rows / self._smooth
        if self._up is not None and self._down is not None:
            rows = rows - self._up[start:stop] @ self._down
        return rows

    def packed(self, name: str) -> PackedWeight | None:
        return None if name == self._weight else self._source.packed(name)

    def _read(self, name: str | None, *, positive: bool) -> Tensor | None:
        if name is None:
            return None
        values = self._source.read(name).to(self._dtype).float()
        if not amax_of(values).isfinite():
            raise _spoiled(name, "not finite", "it would make every frame NaN")
        if positive and not (values > 0).all():
            raise _spoiled(name, "not positive", f"{self._weight} is divided by it")
        return values


def _spoiled(name: str, what: str, because: str) -> FormatError:
    return FormatError(
        f"tensor {name} holds a value that is {what}",
        because=because,
        fix="calibrate again, or export the checkpoint again with the tool that made it",
    )
