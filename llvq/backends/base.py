"""Targets: the machines that llvq compiles for, how they compute, and what runs each op.

A target is explicit and goes into the manifest. `supports` answers with None or with the reason
why not; nothing falls back by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llvq.dialect import DIALECT
from llvq.errors import TargetError

REFERENCE = "reference"  # the dialect's own torch code, called as a custom op
TRITON = "triton"  # a kernel of ours, compiled when a box is exported; `triton:x`, its variant x
TORCH = "torch"  # a library's kernel, or the reference's torch code without a custom op


def is_compiled(implementation: str) -> bool:
    """Whether kernels of ours run an op, which a box then carries."""
    return implementation.partition(":")[0] == TRITON


@dataclass(frozen=True)
class Target:
    """One kind of machine that computes in one way: `implementations` has op -> what runs it.

    An entry `op:kv_format` is for an op on pages of that format alone.
    """

    name: str
    device: str
    numerics: str
    implementations: Mapping[str, str]

    @property
    def chip(self) -> str | None:
        """What kernels are compiled for; None where nothing is."""
        return self.name if self.device == "cuda" else None

    def implementation(self, op: str, kv_format: str | None = None) -> str:
        """What runs the llvq op `op`. KeyError if nothing does: ask `supports` first."""
        special = f"{op}:{kv_format}"
        return self.implementations[special if special in self.implementations else op]

    def supports(self, op: str) -> str | None:
        """None, or why the llvq op `op` cannot run here."""
        if op in self.implementations:
            return None
        return f"{self.name} has no implementation of llvq.{op} in {self.numerics}"


# Every numerics on a GPU. Attention without pages is cuDNN's; what few models have is not worth a
# kernel.
_ON_GPU = {
    "attention": TORCH,
    "channels_last_weight": TORCH,
    "fp8_conv_weight": TORCH,
    "fp8_norm_scale": TORCH,
    "gate_residual": TRITON,
    "lowrank_add": TORCH,
    "norm_modulate": TRITON,
    "paged_attention": TRITON,
    "paged_attention:int2": TORCH,
    "paged_attention:int4": TORCH,
    "paged_attention_kept": TORCH,
    "pixels": TRITON,
    "ring_conv": TRITON,
    "ring_write": TRITON,
    "ring_write_normed": TRITON,
    "rms_norm": TRITON,
    "rms_norm_rope": TRITON,
    "rope": TRITON,
    "subpixel_weight": TORCH,
    "upsample_conv": TRITON,
    "write_kept": TRITON,
    "write_page": TRITON,
    "write_page:int2": TORCH,
    "write_page:int4": TORCH,
}
# Weights and activations in NVFP4, whatever multiplies them.
_NVFP4 = _ON_GPU | {
    "dequantize": TRITON,
    "gelu_quantize": TRITON,
    "norm_modulate_quantize": TRITON,
    "nvfp4_linear_lowrank": TORCH,
    "quantize": TRITON,
    "quantize_lowrank": TORCH,
}
# The same, multiplied in bf16.
_EMULATED = _NVFP4 | {"nvfp4_linear": "triton:dequant"}
# The same with what only tensor cores that multiply it can run.
_W4A4 = _NVFP4 | {"paged_attention_fp4": TRITON}
_W4A4_LINEARS = (
    "nvfp4_linear",
    "nvfp4_linear_gate_residual",
    "nvfp4_linear_gelu",
    "nvfp4_linear_gelu_quantize",
    "nvfp4_linear_swizzled",
)
# Weights in NVFP4, activations as they are.
_W4A16 = _ON_GPU | {"dequantize": TRITON, "nvfp4_linear_w4a16": TRITON}
# Weights widened to FP8, activations in FP8. cuBLASLt multiplies.
_W4A8 = _ON_GPU | {
    "add_norm_quantize_fp8": TRITON,
    "attention_fp8": TRITON,
    "attention_quantize_fp8": TRITON,
    "fp8_linear": TORCH,
    "gelu_quantize_fp8": TRITON,
    "norm_modulate_quantize_fp8": TRITON,
    "paged_attention_fp8": TRITON,
    "paged_attention_fp8:int2": TORCH,
    "paged_attention_fp8:int4": TORCH,
    "paged_attention_quantize_fp8": TRITON,
    "paged_attention_quantize_fp8:int2": TORCH,
    "paged_attention_quantize_fp8:int4": TORCH,
    "quantize_fp8": TRITON,
    "rms_norm_rope_fp8": TRITON,
    "widen": TORCH,
    "window_attention_quantize_fp8": TRITON,
    "window_fp8": TRITON,
}
# Programs that stay where they are, as many as the chip has multiprocessors.
_SM90 = dict.fromkeys(("ring_conv", "upsample_conv"), "triton:sm90")
# Less shared memory, and sums in registers: other tiles.
_SM120 = dict.fromkeys(
    ("paged_attention", "paged_attention_fp4", "ring_conv", "upsample_conv"), "triton:sm120"
)


def _linear(ops: Mapping[str, str], implementation: str) -> Mapping[str, str]:
    """The ops with what multiplies NVFP4 by NVFP4 on a chip that does so in its tensor cores."""
    linears = dict.fromkeys(_W4A4_LINEARS, implementation)
    return MappingProxyType({**ops, **linears, "swizzle_scales": TORCH})


CPU = Target("cpu", "cpu", "w4a4-emulated", MappingProxyType(dict.fromkeys(DIALECT, REFERENCE)))
TARGETS = (
    CPU,
    Target("sm_90a", "cuda", "w4a8", MappingProxyType(_W4A8 | _SM90)),
    Target("sm_90a", "cuda", "w4a4-emulated", MappingProxyType(_EMULATED | _SM90)),
    Target("sm_90a", "cuda", "w4a16", MappingProxyType(_W4A16 | _SM90)),
    Target("sm_100a", "cuda", "w4a4", _linear(_W4A4, "triton")),
    Target("sm_103a", "cuda", "w4a4", _linear(_W4A4, "triton")),
    Target("sm_120a", "cuda", "w4a4", _linear(_W4A4 | _SM120, "triton:sm120")),
)
# How each target computes; the first is its default.
NUMERICS_OF_TARGET = {
    name: tuple(target.numerics for target in TARGETS if target.name == name)
    for name in dict.fromkeys(target.name for target in TARGETS)
}


def find_target(name: str, numerics: str | None = None) -> Target:
    """A target by name, in its default numerics or those named; TargetError names what exists."""
    offered = {target.numerics: target for target in TARGETS if target.name == name}
    if not offered:
        known = ", ".join(NUMERICS_OF_TARGET)
        raise TargetError(f"no target {name!r}", fix=f"use one of {known}")
    if numerics is None:
        return next(iter(offered.values()))
    if numerics not in offered:
        raise TargetError(
            f"{name} does not compute in {numerics!r}", fix=f"use one of {', '.join(offered)}"
        )
    return offered[numerics]
