"""How a chunk of K or V is read from pages and written to them, for each page format.

FP8 is held as UINT8, its bytes, because ONNX cannot gather FP8; bytes of FP8 and packed codes are
decoded by tables, and made by counting steps: ONNX has no cast between types of equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llvq.backends.onnx import encodings, quantization
from llvq.backends.onnx.records import Value
from llvq.backends.onnx.translation import Translator
from llvq.errors import TargetError
from llvq.formats import nvfp4
from llvq.formats.kv import BLOCK_RULE

E4M3_STEPS = 2.0**9
"""The smallest subnormal of E4M3 is its reciprocal."""
E4M3_CODES = 127
"""Codes of finite numbers that are not negative."""


@dataclass(frozen=True)
class PageFormat:
    """read(t, parts of the slots in a table) -> [T, N, H, D]; write(t, x [N, H, D]) -> parts."""

    read: Callable[[Translator, Sequence[Value]], Value]
    write: Callable[[Translator, Value], tuple[Value, ...]]


def read_plain(t: Translator, parts: Sequence[Value]) -> Value:
    return parts[0]


def write_plain(t: Translator, x: Value) -> tuple[Value, ...]:
    return (x,)


def read_fp8(t: Translator, parts: Sequence[Value]) -> Value:
    values, scale = parts
    return t.b.mul(decode_e4m3(t, values), per_slot(t, scale))


def write_fp8(t: Translator, x: Value) -> tuple[Value, ...]:
    wide, limit = t.fp32(x), nvfp4.E4M3_MAX
    scale = t.b.div(t.b.reduce("ReduceMax", t.b.call("Abs", wide)), limit)
    is_zero = t.b.binary("Equal", scale, 0.0, torch.bool)
    scale = t.b.where(is_zero, t.b.scalar(1.0, torch.float32), scale)
    low, high = (t.b.scalar(sign * limit, torch.float32) for sign in (-1, 1))
    return encode_e4m3(t, t.b.call("Clip", t.b.div(wide, scale), low, high)), scale


def read_nvfp4(t: Translator, parts: Sequence[Value]) -> Value:
    codes, scales, g = parts
    step = t.b.mul(decode_e4m3(t, scales), per_slot(t, g))
    return encodings.decode_levels(t.b, encodings.unpack(t.b, codes, t.dialect.through), step)


def write_nvfp4(t: Translator, x: Value) -> tuple[Value, ...]:
    """As llvq does: what rounds to zero keeps its sign, unless the scale of its block is zero."""
    wide = t.fp32(x)
    q = quantization.quantize(t.b, wide, BLOCK_RULE, encodings.BY_TABLE)
    signed = encodings.decode_levels(t.b, wide, q.scales)
    return pack(t, q.codes, signed), encode_e4m3(t, q.scales), q.global_scale


def per_slot(t: Translator, scale: Value) -> Value:
    """[T] -> [T, 1, 1, 1]."""
    return t.b.reshape(scale, (*scale.shape, 1, 1, 1))


def decode_e4m3(t: Translator, stored: Value) -> Value:
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    index = t.b.cast(t.b.cast(stored, t.dialect.through), torch.int32)
    return t.b.gather(t.b.constant(table), index, 0)


def to_bytes(t: Translator, numbers: Value) -> Value:
    return t.b.cast(t.b.cast(numbers, t.dialect.through), torch.uint8)


def encode_e4m3(t: Translator, x: Value) -> Value:
    """The bytes of fp32 values, rounded to E4M3. What rounds to zero keeps its sign.

    ONNX has no cast between types of equal bits. Magnitudes of E4M3 are multiples of 2**-9, so the
    count of them finds the byte in a table of 0.9 MB.
    """
    rounded = t.b.cast(t.b.cast(x, torch.float8_e4m3fn), torch.float32)
    codes = torch.arange(E4M3_CODES, dtype=torch.uint8)
    table = torch.zeros(int(nvfp4.E4M3_MAX * E4M3_STEPS) + 1, dtype=torch.int32)
    table[(codes.view(torch.float8_e4m3fn).float() * E4M3_STEPS).long()] = codes.int()
    steps = t.b.cast(t.b.mul(t.b.call("Abs", rounded), E4M3_STEPS), torch.int32)
    code = t.b.gather(t.b.constant(table), steps, 0)
    return to_bytes(t, t.b.add(code, _sign_bit(t, x, 128)))


def pack(t: Translator, levels: Value, signed: Value) -> Value:
    """fp32 values of E2M1 [..., K], and their signs -> codes uint8 [..., K/2], low nibble first."""
    counts = torch.zeros(13, dtype=torch.int32)
    counts[(torch.tensor(nvfp4.E2M1_VALUES) * 2).long()] = torch.arange(8, dtype=torch.int32)
    halves = t.b.cast(t.b.mul(t.b.call("Abs", levels), 2.0), torch.int32)
    nibbles = t.b.add(t.b.gather(t.b.constant(counts), halves, 0), _sign_bit(t, signed, 8))
    *lead, width = nibbles.shape
    assert width is not None
    pairs = t.b.reshape(nibbles, (*lead, width // 2, 2))
    weighted = t.b.mul(pairs, t.b.constant(torch.tensor([1, 16], dtype=torch.int32)))
    return to_bytes(t, t.b.reduce("ReduceSum", weighted, [-1]))


def _sign_bit(t: Translator, x: Value, bit: int) -> Value:
    negative = t.b.binary("Less", x, 0.0, torch.bool)
    return t.b.mul(t.b.cast(negative, torch.int32), bit)


FORMATS = {
    "none": PageFormat(read_plain, write_plain),
    "fp8": PageFormat(read_fp8, write_fp8),
    "nvfp4": PageFormat(read_nvfp4, write_nvfp4),
}


def page_format(name: str) -> PageFormat:
    """Raises TargetError for a format of llvq that has no translation."""
    if name not in FORMATS:
        raise TargetError(
            f"KV pages are {name}",
            because=f"pages have a translation to ONNX that are {', '.join(FORMATS)}",
            fix='quantize again with a recipe that has [kv] format = "nvfp4"',
        )
    return FORMATS[name]
