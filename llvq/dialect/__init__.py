"""The llvq dialect: every op the compiler raises to, fuses into, and the runtime executes."""

from llvq.dialect.cache_ops import paged_attention, paged_attention_kept, write_kept, write_page
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
from llvq.dialect.registry import BF16_ROUNDING, DIALECT, EXACT, Op, Tolerance, known_ops

__all__ = [
    "BF16_ROUNDING",
    "DIALECT",
    "EXACT",
    "Op",
    "Tolerance",
    "attention",
    "dequantize",
    "gate_residual",
    "gelu_quantize",
    "known_ops",
    "lowrank_add",
    "norm_modulate",
    "norm_modulate_quantize",
    "nvfp4_linear",
    "nvfp4_linear_lowrank",
    "paged_attention",
    "paged_attention_kept",
    "quantize",
    "quantize_lowrank",
    "rms_norm",
    "rms_norm_rope",
    "rope",
    "write_kept",
    "write_page",
]
