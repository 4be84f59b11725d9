"""Attention whose scores are products of NVFP4, on tensor cores that multiply it.

K of the history is multiplied as its pages hold it; Q and the chunk's own K are quantized for it.
Softmax, weights and V are those of `paged_attention`. Shapes: N tokens of the chunk, P pages of
history, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llvq.dialect.registry import ATTENTION_ROUNDING, like_attended, op
from llvq.formats import nvfp4
from llvq.formats.kv import KV_FORMATS

KV_FORMAT = "nvfp4"
BLOCK_RULE = "max"


# A product of two codes and a block's sum of them are exact in fp32, and codes are the same
# everywhere. What differs is what differs in `attention`: sums of blocks, and weights in bf16.
@op(fake=like_attended, tolerance=ATTENTION_ROUNDING)
def paged_attention_fp4(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    scale: float | None,
    layer: int,
) -> Tensor:
    """`paged_attention` over NVFP4 pages with Q and K in NVFP4: a chunk [1, N, H, D] over the pages
    of `table` (int64 [P]) and itself.

    Q and the chunk's own K are quantized by the `max` rule in blocks of 16 along D, with one global
    scale for all of Q and one for all of K. Scores and softmax are fp32; weights are rounded to the
    dtype of v. K has its positions already: raw K would have to be rotated, and codes cannot be.
    """
    kv = KV_FORMATS[KV_FORMAT]
    history = kv.read(pages, layer, 0, table, torch.float32)[None]
    window_k = torch.cat([history, _through_nvfp4(k)], dim=1)
    window_v = torch.cat([kv.read(pages, layer, 1, table, v.dtype)[None], v], dim=1)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return _attend(_through_nvfp4(q) * factor, window_k, window_v).to(q.dtype)


def _through_nvfp4(x: Tensor) -> Tensor:
    """What x [1, N, H, D] is after a round trip, in fp32."""
    return nvfp4.dequantize(*nvfp4.quantize(x, block_rule=BLOCK_RULE), torch.float32)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """fp32 [1, N, H, D]. Head by head, to keep the scores of one in memory."""
    heads = []
    for h in range(q.shape[2]):
        scores = q[:, :, h] @ k[:, :, h].transpose(1, 2)
        weights = scores.softmax(-1).to(v.dtype)
        heads.append(weights.float() @ v[:, :, h].float())
    return torch.stack(heads, dim=2)
