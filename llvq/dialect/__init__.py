"""The llvq dialect: every op the compiler raises to, fuses into, and the runtime executes."""

from llvq.dialect.cache_ops import paged_attention, paged_attention_kept, write_kept, write_page
from llvq.dialect.epilogue_ops import (
    nvfp4_linear_gate_residual,
    nvfp4_linear_gelu,
    nvfp4_linear_gelu_quantize,
)
from llvq.dialect.fp4_attention_ops import paged_attention_fp4
from llvq.dialect.fp8_attention_ops import (
    attention_fp8,
    attention_quantize_fp8,
    paged_attention_fp8,
    paged_attention_quantize_fp8,
)
from llvq.dialect.fp8_ops import (
    add_norm_quantize_fp8,
    fp8_linear,
    fp8_norm_scale,
    gelu_quantize_fp8,
    norm_modulate_quantize_fp8,
    quantize_fp8,
    rms_norm_rope_fp8,
    widen,
)
from llvq.dialect.fp8_window_ops import window_attention_quantize_fp8, window_fp8
from llvq.dialect.frame_ops import (
    channels_last_weight,
    conv3d_fp8,
    fp8_conv_weight,
    pixels,
    subpixel_weight,
    upsample_conv,
)
from llvq.dialect.lowrank_ops import lowrank_add, nvfp4_linear_lowrank, quantize_lowrank
from llvq.dialect.model_ops import (
    attention,
    gate_residual,
    norm_modulate,
    rms_norm,
    rms_norm_rope,
    rope,
)
from llvq.dialect.nvfp4_ops import (
    dequantize,
    gelu_quantize,
    norm_modulate_quantize,
    nvfp4_linear,
    quantize,
)
from llvq.dialect.registry import (
    BF16_ROUNDING,
    DIALECT,
    EXACT,
    Op,
    Tolerance,
    known_ops,
)
from llvq.dialect.ring_ops import ring_conv, ring_write, ring_write_normed
from llvq.dialect.swizzled_ops import nvfp4_linear_swizzled, swizzle_scales
from llvq.dialect.w4a16_ops import nvfp4_linear_w4a16

__all__ = [
    "BF16_ROUNDING",
    "DIALECT",
    "EXACT",
    "Op",
    "Tolerance",
    "add_norm_quantize_fp8",
    "attention",
    "attention_fp8",
    "attention_quantize_fp8",
    "channels_last_weight",
    "conv3d_fp8",
    "dequantize",
    "fp8_conv_weight",
    "fp8_linear",
    "fp8_norm_scale",
    "gate_residual",
    "gelu_quantize",
    "gelu_quantize_fp8",
    "known_ops",
    "lowrank_add",
    "norm_modulate",
    "norm_modulate_quantize",
    "norm_modulate_quantize_fp8",
    "nvfp4_linear",
    "nvfp4_linear_gate_residual",
    "nvfp4_linear_gelu",
    "nvfp4_linear_gelu_quantize",
    "nvfp4_linear_lowrank",
    "nvfp4_linear_swizzled",
    "nvfp4_linear_w4a16",
    "paged_attention",
    "paged_attention_fp4",
    "paged_attention_fp8",
    "paged_attention_kept",
    "paged_attention_quantize_fp8",
    "pixels",
    "quantize",
    "quantize_fp8",
    "quantize_lowrank",
    "ring_conv",
    "ring_write",
    "ring_write_normed",
    "rms_norm",
    "rms_norm_rope",
    "rms_norm_rope_fp8",
    "rope",
    "subpixel_weight",
    "swizzle_scales",
    "upsample_conv",
    "widen",
    "window_attention_quantize_fp8",
    "window_fp8",
    "write_kept",
    "write_page",
]
