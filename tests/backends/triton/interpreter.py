"""Triton's interpreter, made right for bf16, fp8 and NVFP4, and a launcher that runs kernels in it.

As it comes it does arithmetic on the raw bits of bf16, truncates where it should round, and reads
scales of NVFP4 as powers of two. Kernels are ordinary `@triton.jit` functions, which the same
process also compiles: nothing of Triton stays changed after a launch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle
from triton.runtime.jit import JITFunction

from llvq.backends.triton.specialize import Argument, Constant, specialize

# Formats that numpy has not: Triton type -> torch dtype, and what their bits are kept in.
NARROW = {
    tl.bfloat16: (torch.bfloat16, np.uint16),
    tl.float8e4nv: (torch.float8_e4m3fn, np.uint8),
    tl.float8e5: (torch.float8_e5m2, np.uint8),
}
E4M3_MAX = 448.0
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1_SIGNED = np.concatenate([E2M1, -E2M1])


def widen(data: np.ndarray, kind: Any) -> np.ndarray:
    """The fp32 values of an array that holds numbers of a Triton type."""
    if kind.scalar not in NARROW:
        return data.astype(np.float32)
    dtype, bits = NARROW[kind.scalar]
    raw = np.ascontiguousarray(data).view(bits).copy()
    return torch.from_numpy(raw).view(dtype).float().numpy().reshape(data.shape)


def narrow(values: np.ndarray, kind: Any) -> np.ndarray:
    """fp32 values rounded to nearest even; E4M3 saturates, as the hardware's conversion does."""
    dtype, bits = NARROW[kind.scalar]
    wide = torch.from_numpy(np.array(values, np.float32))
    if dtype == torch.float8_e4m3fn:
        wide = wide.clamp(-E4M3_MAX, E4M3_MAX)  # NaN stays NaN
    return wide.to(dtype).view(getattr(torch, bits.__name__)).numpy().view(bits)


def convert_float(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """Bits of `source` -> bits of `target`: what Triton's function of this name returns."""
    assert rounding in (None, ir.ROUNDING_MODE.RTNE), f"the interpreter rounds {rounding} wrongly"
    kinds = (source.scalar, target.scalar)
    wide = widen(data, source) if kinds[0] in NARROW else data.view(numpy_type(source))
    found = narrow(wide, target) if kinds[1] in NARROW else wide.astype(numpy_type(target))
    return found.view(getattr(np, f"uint{target.scalar.primitive_bitwidth}"))


def numpy_type(kind: Any) -> np.dtype:
    return getattr(np, f"float{kind.scalar.primitive_bitwidth}")


def cast(builder: Any, source: TensorHandle, target: Any) -> TensorHandle:
    """Conversions between numbers; between formats they go through fp32."""
    kinds = (source.dtype.scalar, target.scalar)
    wide = widen(source.data, kinds[0]) if kinds[0] in NARROW else source.data
    if kinds[1] in NARROW:
        return TensorHandle(narrow(wide, kinds[1]), kinds[1])
    if kinds[0].is_floating() and not kinds[1].is_floating():
        wide = np.trunc(wide)
    return TensorHandle(wide.astype(interpreter._get_np_dtype(target)), kinds[1])


def in_fp32(original: Callable[..., Any]) -> Callable[..., Any]:
    """A builder's operation that, on formats numpy has not, computes in fp32 and rounds."""

    def operation(builder: Any, *operands: Any) -> Any:
        kind = operands[0].dtype.scalar
        if kind not in NARROW:
            found = original(builder, *operands)
        else:
            found = original(builder, *(widened(operand) for operand in operands))
        if found.data.dtype == np.bool_:  # a comparison, which keeps the type of what it compares
            return TensorHandle(found.data, tl.int1)
        return TensorHandle(narrow(found.data, kind), kind) if kind in NARROW else found

    return operation


def widened(operand: Any) -> Any:
    if not isinstance(operand, TensorHandle):
        return operand
    return TensorHandle(widen(operand.data, operand.dtype), tl.float32)


def of_wide(original: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction that refuses bf16 and fp8: numpy would take maxima and sums of their bits."""

    def reduction(ops: Any, values: Any, *rest: Any, **more: Any) -> Any:
        assert values.dtype.scalar not in NARROW, "reduce in fp32"
        return original(ops, values, *rest, **more)

    return reduction


def create_dot(builder: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: Any) -> Any:
    if not a.dtype.scalar.is_floating():
        found = np.matmul(a.data.astype(np.int32), b.data.astype(np.int32)) + d.data
        return TensorHandle(found, d.dtype.scalar)
    found = np.matmul(widen(a.data, a.dtype), widen(b.data, b.dtype)) + widen(d.data, d.dtype)
    return cast(builder, TensorHandle(found.astype(np.float32), tl.float32), d.dtype)


def create_dot_scaled(
    builder: Any,
    lhs: TensorHandle,
    lhs_scale: TensorHandle | None,
    lhs_format: Any,
    rhs: TensorHandle,
    rhs_scale: TensorHandle | None,
    rhs_format: Any,
    fast_math: bool,
    lhs_k_pack: bool,
    rhs_k_pack: bool,
    acc: TensorHandle,
) -> TensorHandle:
    left = scaled(lhs, lhs_scale, lhs_format, -1 if lhs_k_pack else -2)
    swapped = TensorHandle(np.swapaxes(rhs.data, -1, -2), rhs.dtype)
    right = scaled(swapped, rhs_scale, rhs_format, -1 if rhs_k_pack else -2)
    found = np.matmul(left, np.swapaxes(right, -1, -2)) + acc.data
    return TensorHandle(found.astype(np.float32), tl.float32)


def scaled(value: TensorHandle, scale: TensorHandle | None, kind: Any, packed: int) -> np.ndarray:
    """The fp32 values of an operand [rows, K] whose codes are packed along that axis."""
    if kind == ir.ScaleDotElemTypeTY.E2M1:
        codes = np.moveaxis(value.data.view(np.uint8), packed, -1)
        wide = E2M1_SIGNED[np.stack([codes & 15, codes >> 4], -1)]
        wide = np.moveaxis(wide.reshape(*codes.shape[:-1], -1), -1, packed)
    else:
        wide = widen(value.data, value.dtype)
    if scale is None:
        return wide
    if scale.dtype.scalar == tl.float8e4nv:
        factors = widen(scale.data, scale.dtype)
    else:  # powers of two
        factors = np.ldexp(np.float32(1), scale.data.view(np.uint8).astype(np.int32) - 127)
    return wide * np.repeat(factors, wide.shape[-1] // factors.shape[-1], -1)


def dot_scaled_with_names(original: Callable[..., Any]) -> Callable[..., Any]:
    """Triton 3.6 hands the names of formats over as constants, and finds strings here."""
    if "lhs_format.value" not in inspect.getsource(original):
        return original

    def dot_scaled(semantic: Any, *operands: Any) -> Any:
        return original(semantic, *(tl.constexpr(o) if isinstance(o, str) else o for o in operands))

    return dot_scaled


REPAIRS = (
    (interpreter, "_convert_float", convert_float),
    (InterpreterBuilder, "cast_impl", cast),
    (InterpreterBuilder, "binary_op", in_fp32(InterpreterBuilder.binary_op)),
    (InterpreterBuilder, "unary_op", in_fp32(InterpreterBuilder.unary_op)),
    (InterpreterBuilder, "create_fma", in_fp32(InterpreterBuilder.create_fma)),
    (InterpreterBuilder, "create_clampf", in_fp32(InterpreterBuilder.create_clampf)),
    (InterpreterBuilder, "create_rsqrt", in_fp32(InterpreterBuilder.create_rsqrt)),
    (InterpreterBuilder, "create_dot", create_dot),
    (InterpreterBuilder, "create_dot_scaled", create_dot_scaled),
    (ReduceOps, "min_max", of_wide(ReduceOps.min_max)),
    (ReduceOps, "sum", of_wide(ReduceOps.sum)),
    (TritonSemantic, "dot_scaled", dot_scaled_with_names(TritonSemantic.dot_scaled)),
    (JITFunction, "__call__", lambda function, *args, **more: rewritten(function)(*args, **more)),
    # Methods of tensors that are jit functions, as `x.sum()`.
    (JITFunction, "__get__", lambda function, instance, *_: partial(function, instance)),
)


def rewritten(function: Any) -> Callable[..., Any]:
    """The Python function of a kernel or of what it calls, as the interpreter wants it."""
    return interpreter.InterpretedFunction(function.fn).rewrite()


@contextmanager
def interpreting() -> Iterator[None]:
    """Within, functions of `triton.language` compute, and jit functions call each other."""
    patches = [patch.object(*repair, create=True) for repair in REPAIRS]
    language = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    for repair in patches:
        repair.start()
    scope = interpreter._patch_lang(language)
    try:
        yield
    finally:
        scope.restore()
        for repair in reversed(patches):
            repair.stop()


class Interpreted:
    """Runs kernels on tensors of the CPU, program by program. A launcher, like those of
    `llvq.backends.triton.launchers`; it refuses what they refuse."""

    def __call__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *args: Argument,
        warps: int = 4,
        stages: int = 2,
        exact: bool = False,
        **constants: Constant,
    ) -> None:
        wanted = specialize(kernel, args, constants, warps=warps, stages=stages, exact=exact)
        types, present = dict(wanted.signature), [value for value in args if value is not None]
        values = {name: argument(value, types[name])
                  for name, value in zip(types, present, strict=True)}  # fmt: skip
        blocks = (*grid, 1, 1)[:3]
        with interpreting(), np.errstate(all="ignore"):
            run = rewritten(kernel)
            interpreter.interpreter_builder.set_grid_dim(*blocks)
            for place in product(*map(range, blocks)):
                interpreter.interpreter_builder.set_grid_idx(*place)
                run(**values, **dict(wanted.constants))


def argument(value: Any, kind: str) -> Any:
    """A kernel's argument as the interpreter holds it."""
    given, dtype = value, np.int32 if kind == "i32" else np.float32
    if isinstance(value, torch.Tensor):
        given, dtype = value.data_ptr(), np.uint64
    triton_type = tl.str_to_ty(kind, None)
    return tl.tensor(TensorHandle(np.array([given], dtype), triton_type), triton_type)
