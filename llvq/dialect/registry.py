"""The registry of the llvq dialect.

An op shows its four faces together: schema (the signature), reference (the body, plain PyTorch
on any device), fake (shapes and dtypes) and tolerance (how far a backend may be from the
reference). A fused op's reference is the literal composition of the unfused references, with
every intermediate rounding, so that a fusion never changes a number by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the reference. All zero means bit for bit.

    relative: largest accepted max|a - b| / max|b|.
    flipped: largest accepted share of bytes that differ, for results of one byte per element (codes
    and block scales of NVFP4). Where it is zero, they are held to `relative` like any other.
    """

    relative: float
    flipped: float = 0.0


EXACT = Tolerance(0.0)
BF16_ROUNDING = Tolerance(2**-7)
# Two products with bf16 between them: softmax weights are rounded too, below a running maximum.
ATTENTION_ROUNDING = Tolerance(2**-6)
# A result that is rounded, then added to something and rounded again. What is rounded may be twice
# what comes out, and tensor cores of Hopper keep 14 bits of a sum of products in FP8.
SUM_ROUNDING = Tolerance(2**-5)
# NVFP4 of a sum of products whose operands the reference rounds first: a value that moves by an ulp
# may round to the next code, a block to the next scale or, by four_over_six, to 1.5 times as much.
# At 512 x 256 and K up to 3072, at most 2.7% of codes and 3.8% of scales differed.
CODE_ROUNDING = Tolerance(2**-7, flipped=0.06)


@dataclass(frozen=True)
class Op:
    """One operation of the dialect as `torch.ops.llvq.<name>`."""

    name: str
    schema: str
    reference: Callable[..., Any]
    tolerance: Tolerance

    @property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.llvq, self.name).default


DIALECT: dict[str, Op] = {}


def op(
    *, fake: Callable[..., Any], tolerance: Tolerance, mutates: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Op]:
    """Register a reference with its fake as `llvq::<function name>`."""

    def register(reference: Callable[..., Any]) -> Op:
        name = reference.__name__
        custom = torch.library.custom_op(f"llvq::{name}", reference, mutates_args=mutates)
        custom.register_fake(fake)
        schema = str(getattr(torch.ops.llvq, name).default._schema)
        DIALECT[name] = Op(name, schema, reference, tolerance)
        return DIALECT[name]

    return register


def known_ops() -> dict[str, str]:
    """Op name -> schema, as a manifest records it."""
    return {f"llvq.{name}.default": entry.schema for name, entry in DIALECT.items()}


def like_first(x: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def like_attended(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
    """What attention of q [B, N, H, D] over v [B, M, H, D'] gives: [B, N, H, D'], like q."""
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def require_same_k(x: int, w: int) -> None:
    """For fakes of linears. Raises ValueError: the reduction dims of x and of the weight differ."""
    if x != w:
        raise ValueError(f"reduction dims differ: x has K = {x}, the weight has K = {w}")
