"""The pipeline: how a captured program becomes quantized, fused, cached and staged.

A pass is a function `(program, context) -> books` that climbs at most one rung of the ladder.
"""

import llvq.dialect  # noqa: F401  patterns name ops of the dialect, so it is registered first
from llvq.passes.cache_attention import cache_attention
from llvq.passes.canonicalize import canonicalize
from llvq.passes.convs_to_fp8 import convs_to_fp8
from llvq.passes.fold_smoothing import fold_smoothing
from llvq.passes.fuse_gate_residual import fuse_gate_residual
from llvq.passes.fuse_gelu_quantize import fuse_gelu_quantize
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.fuse_lowrank import fuse_lowrank
from llvq.passes.fuse_norm_quantize import fuse_norm_quantize
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.manager import Options, Pass, Report, Result, check_tolerances, run
from llvq.passes.raise_attention import raise_attention
from llvq.passes.raise_norm_modulate import raise_norm_modulate
from llvq.passes.raise_qk_norm_rope import raise_qk_norm_rope
from llvq.passes.rules import Rewrite
from llvq.passes.split_stages import split_stages
from llvq.program import Level

PIPELINE = (
    Pass(canonicalize, Level.CAPTURED, "exact", whole=True),
    Pass(raise_attention, Level.CAPTURED, "exact", whole=True),
    Pass(raise_norm_modulate, Level.CAPTURED, "exact", optional=True),
    Pass(raise_qk_norm_rope, Level.CANONICAL, "exact"),
    Pass(insert_quantize, Level.QUANTIZED, "rounds"),
    Pass(fold_smoothing, Level.QUANTIZED, "rounds", optional=True),
    Pass(fuse_norm_quantize, Level.QUANTIZED, "exact", optional=True),
    Pass(fuse_gelu_quantize, Level.QUANTIZED, "exact", optional=True),
    Pass(fuse_gate_residual, Level.QUANTIZED, "exact", optional=True),
    Pass(convs_to_fp8, Level.QUANTIZED, "rounds", optional=True),
    Pass(fuse_linear, Level.FUSED, "exact"),
    Pass(fuse_lowrank, Level.FUSED, "exact", optional=True),
    Pass(cache_attention, Level.CACHED, "rounds", whole=True),
    Pass(split_stages, Level.STAGED, "exact", whole=True),
)

__all__ = ["PIPELINE", "Options", "Pass", "Report", "Result", "Rewrite", "check_tolerances", "run"]
