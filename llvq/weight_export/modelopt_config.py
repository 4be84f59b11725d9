"""`quantization_config` in ModelOpt's words: one algorithm for all linears, or one for each.

Facts: what modelopt 0.47 writes for a diffusers model (convert_hf_quant_config_format, and the
quant_algo of process_layer_quant_config). Its NVFP4_AWQ comes without `config_groups`; here these
say the same as for the other algorithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llvq
from llvq.formats.nvfp4 import BLOCK

PRODUCER = {"name": "llvq", "version": llvq.__version__}
FP4 = {"num_bits": 4, "type": "float", "group_size": BLOCK}
PLAIN, WEIGHTS_ALONE, SMOOTHED, LOW_RANK = "NVFP4", "W4A16_NVFP4", "NVFP4_AWQ", "NVFP4_SVD"
MIXED = "MIXED_PRECISION"


@dataclass(frozen=True)
class Beside:
    """What is stored beside a packed linear: a `pre_quant_scale`, a branch of this rank."""

    smoothed: bool = False
    rank: int = 0


def modelopt_config(
    ignore: Sequence[str], linears: Mapping[str, Beside], *, static: bool
) -> dict[str, Any]:
    """For these packed linears. Without static input scales activations are in no group."""
    of = _algorithms(linears, static=static)
    used = sorted(set(of.values()))
    groups = {
        f"group_{index}": {
            **_group(algorithm, static=static),
            "targets": sorted(n for n in of if of[n] == algorithm) if used[1:] else ["Linear"],
        }
        for index, algorithm in enumerate(used)
    }
    config = {
        "config_groups": groups,
        "ignore": list(ignore),
        "quant_algo": MIXED if used[1:] else used[0],
        "producer": PRODUCER,
        "quant_method": "modelopt",
    }
    if used[1:]:
        return {**config, "quantized_layers": {name: _layer(of[name]) for name in sorted(of)}}
    if ranks := {beside.rank for beside in linears.values()} - {0}:
        groups["group_0"] |= {"lora_rank": ranks.pop()} if len(ranks) == 1 else {}
    return config


def _algorithms(linears: Mapping[str, Beside], *, static: bool) -> dict[str, str]:
    """ModelOpt calls a linear NVFP4_AWQ where the norm before it holds its factor, too: so are all
    without a branch if one of them is smoothed."""
    smoothed = any(beside.smoothed and not beside.rank for beside in linears.values())
    without = SMOOTHED if smoothed else PLAIN if static else WEIGHTS_ALONE
    return {name: LOW_RANK if beside.rank else without for name, beside in linears.items()}


def _group(algorithm: str, *, static: bool) -> dict[str, Any]:
    fp4 = {"dynamic": False, **FP4}
    group: dict[str, Any] = {"weights": fp4}
    group |= {"input_activations": fp4} if static else {}
    return group | _flags(algorithm)


def _layer(algorithm: str) -> dict[str, Any]:
    return {"quant_algo": algorithm, "group_size": BLOCK, **_flags(algorithm)}


def _flags(algorithm: str) -> dict[str, bool]:
    behind = algorithm in (SMOOTHED, LOW_RANK)
    return {"has_zero_point": False, "pre_quant_scale": True} if behind else {}
