"""Whether two results are the same to the byte."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def same_bytes(found: Tensor, wanted: Tensor) -> bool:
    """Dtype, shape and every byte. The sign of a NaN is the machine's, so NaN is NaN."""
    found, wanted = found.cpu(), wanted.cpu()
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    if found.is_floating_point():
        where = [t.float().isnan() for t in (found, wanted)]
        if not torch.equal(*where):
            return False
        found, wanted = found[~where[0]], wanted[~where[0]]
    return torch.equal(*(t.contiguous().view(torch.uint8).flatten() for t in (found, wanted)))


def all_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(same_bytes(a, b) for a, b in zip(found, wanted, strict=True))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """max|a - b| / max|b|, as the tolerances of ops are stated."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    found, wanted = found.cpu().double(), wanted.cpu().double()
    assert found.isfinite().all()
    return float((found - wanted).abs().max() / wanted.abs().max())
