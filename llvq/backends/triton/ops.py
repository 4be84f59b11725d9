"""Ops of the dialect that have kernels: name -> wrapper, called with a launcher and the op's own
arguments.

`op:variant` is another wrapper of the same op, for targets that name the variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvq.backends.library_gemm import nvfp4_linear_library
from llvq.backends.triton import fp8_attention_cudnn
from llvq.backends.triton.block_scaled_gemm import nvfp4_linear, nvfp4_linear_sm120
from llvq.backends.triton.dequant_gemm import nvfp4_linear_dequant, nvfp4_linear_w4a16
from llvq.backends.triton.epilogue_linears import ON_SM100, ON_SM120
from llvq.backends.triton.fp8_attention import (
    attention_fp8,
    attention_quantize_fp8,
    paged_attention_fp8,
    paged_attention_quantize_fp8,
    window_attention_quantize_fp8,
)
from llvq.backends.triton.fp8_norm import add_norm_quantize_fp8, norm_modulate_quantize_fp8
from llvq.backends.triton.fp8_quantize import gelu_quantize_fp8, quantize_fp8
from llvq.backends.triton.fp8_window import window_fp8
from llvq.backends.triton.gate_residual import gate_residual
from llvq.backends.triton.gelu import gelu_quantize
from llvq.backends.triton.norm import norm_modulate, norm_modulate_quantize, rms_norm
from llvq.backends.triton.paged_attention import paged_attention, paged_attention_sm120
from llvq.backends.triton.paged_attention_fp4 import paged_attention_fp4, paged_attention_fp4_sm120
from llvq.backends.triton.pages import write_kept, write_page
from llvq.backends.triton.quantize import dequantize, quantize
from llvq.backends.triton.ring_conv import ring_conv, ring_conv_sm90, ring_conv_sm120
from llvq.backends.triton.ring_write import pixels, ring_write, ring_write_normed
from llvq.backends.triton.rope import rms_norm_rope, rms_norm_rope_fp8, rope
from llvq.backends.triton.upsample_conv import (
    upsample_conv,
    upsample_conv_sm90,
    upsample_conv_sm120,
)

OPS: Mapping[str, Callable[..., Any]] = {
    "add_norm_quantize_fp8": add_norm_quantize_fp8,
    "attention_fp8": attention_fp8,
    "attention_quantize_fp8": attention_quantize_fp8,
    "attention_quantize_fp8:cudnn": fp8_attention_cudnn.attention_quantize_fp8,
    "dequantize": dequantize,
    "gate_residual": gate_residual,
    "gelu_quantize": gelu_quantize,
    "gelu_quantize_fp8": gelu_quantize_fp8,
    "norm_modulate": norm_modulate,
    "norm_modulate_quantize": norm_modulate_quantize,
    "norm_modulate_quantize_fp8": norm_modulate_quantize_fp8,
    "nvfp4_linear": nvfp4_linear,
    "nvfp4_linear:dequant": nvfp4_linear_dequant,
    "nvfp4_linear:library": nvfp4_linear_library,
    "nvfp4_linear:sm120": nvfp4_linear_sm120,
    "nvfp4_linear_gate_residual": ON_SM100.gate_residual,
    "nvfp4_linear_gate_residual:sm120": ON_SM120.gate_residual,
    "nvfp4_linear_gelu": ON_SM100.gelu,
    "nvfp4_linear_gelu:sm120": ON_SM120.gelu,
    "nvfp4_linear_gelu_quantize": ON_SM100.gelu_quantize,
    "nvfp4_linear_gelu_quantize:sm120": ON_SM120.gelu_quantize,
    "nvfp4_linear_swizzled": nvfp4_linear,
    "nvfp4_linear_swizzled:library": nvfp4_linear_library,
    "nvfp4_linear_swizzled:sm120": nvfp4_linear_sm120,
    "nvfp4_linear_w4a16": nvfp4_linear_w4a16,
    "paged_attention": paged_attention,
    "paged_attention:sm120": paged_attention_sm120,
    "paged_attention_fp4": paged_attention_fp4,
    "paged_attention_fp4:sm120": paged_attention_fp4_sm120,
    "paged_attention_fp8": paged_attention_fp8,
    "paged_attention_quantize_fp8": paged_attention_quantize_fp8,
    "paged_attention_quantize_fp8:cudnn": fp8_attention_cudnn.paged_attention_quantize_fp8,
    "pixels": pixels,
    "quantize": quantize,
    "quantize_fp8": quantize_fp8,
    "ring_conv": ring_conv,
    "ring_conv:sm90": ring_conv_sm90,
    "ring_conv:sm120": ring_conv_sm120,
    "ring_write": ring_write,
    "ring_write_normed": ring_write_normed,
    "rms_norm": rms_norm,
    "rms_norm_rope": rms_norm_rope,
    "rms_norm_rope_fp8": rms_norm_rope_fp8,
    "rope": rope,
    "upsample_conv": upsample_conv,
    "upsample_conv:sm90": upsample_conv_sm90,
    "upsample_conv:sm120": upsample_conv_sm120,
    "window_attention_quantize_fp8": window_attention_quantize_fp8,
    "window_fp8": window_fp8,
    "write_kept": write_kept,
    "write_page": write_page,
}
