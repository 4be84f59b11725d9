"""Attention in FP8 by cuDNN: kernels of ours make its operands, one scale for each of Q, K and V.

What it writes is under the scale of V, as `*_quantize_fp8` want it. On Hopper it writes nothing but
FP8, which is one rounding more than the ops allow that end in another dtype.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from llvq.backends import cudnn_attention
from llvq.backends.triton.fp8_scales import History
from llvq.backends.triton.fp8_window import rows_in_fp8
from llvq.backends.triton.specialize import Launcher
from llvq.dialect import fp8_attention_ops
from llvq.errors import TargetError
from llvq.formats import fp8

HEAD_DIM = 128  # what it was measured and checked with
BLOCK = 4096  # tokens whose scales one program writes
WEIGHT_SCALE = tl.constexpr(fp8_attention_ops.WEIGHT_SCALE)
SPACING = tl.constexpr(cudnn_attention.SPACING)


def attention_quantize_fp8(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    q_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over k and v [1, M, H, D] as they are: values [1, N, E] and scales [1, N, 1].

    Raises TargetError, KernelError.
    """
    return _attend(launch, q, k, v, None, None, scale, q_scale, None)


def paged_attention_quantize_fp8(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Sequence[Tensor],
    table: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    layer: int,
    kv_format: str,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over the pages of a table, then the chunk's own k and v, in the same form."""
    history = History(pages, table, layer, kv_format)
    rope = (cos, sin) if cos is not None and sin is not None else None
    return _attend(launch, q, k, v, history, rope, scale, q_scale, k_scale)


def _attend(
    launch: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    history: History | None,
    rope: tuple[Tensor, Tensor] | None,
    scale: float | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Values [1, N, E] and scales [1, N, 1]; on `meta`, what the kernels are launched with."""
    _, tokens, heads, dim = q.shape
    if dim != HEAD_DIM:
        raise TargetError(
            f"cuDNN's attention in FP8 is not used for heads of {dim} channels",
            because=f"it was checked for heads of {HEAD_DIM}",
            fix="use the Triton implementation of this op",
        )
    rows = rows_in_fp8(launch, q, k, v, history, rope, q_scale, k_scale)
    scalars = cudnn_attention.empty_scalars(q.device)
    out_scales = torch.empty((1, tokens, 1), dtype=torch.float32, device=q.device)
    grid = (triton.cdiv(tokens, BLOCK),)
    launch(scalars_kernel, grid, rows.scales, scalars, out_scales, tokens, BLOCK=BLOCK)
    out = torch.empty((tokens, heads, dim), dtype=fp8.DTYPE, device=q.device)
    if q.device.type != "meta":
        factor = float(dim**-0.5 if scale is None else scale)
        cudnn_attention.attend(rows.q, rows.k, rows.v, scalars, out, factor)
    return out.view(1, tokens, heads * dim), out_scales


@triton.jit
def scalars_kernel(scales, scalars, out_scales, tokens, BLOCK: tl.constexpr):
    """From scales of K, V and Q: what cuDNN calls its scalars, in its order, and each token's."""
    v_scale = tl.load(scales + 1)
    if tl.program_id(0) == 0:
        tl.store(scalars, tl.load(scales + 2))
        tl.store(scalars + SPACING, tl.load(scales))
        tl.store(scalars + 2 * SPACING, v_scale)
        tl.store(scalars + 3 * SPACING, 1.0 / WEIGHT_SCALE)
        tl.store(scalars + 4 * SPACING, WEIGHT_SCALE)
        tl.store(scalars + 5 * SPACING, tl.math.div_rn(1.0, v_scale))
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_scales + token, tl.zeros_like(token).to(tl.float32) + v_scale, mask=token < tokens)
