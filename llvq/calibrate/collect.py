"""From a model that ModelOpt has calibrated to facts about its linears, as calibration.py names.

ModelOpt keeps its results in the dtype of the model; what it rounds to bf16 stays so rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llvq.formats.nvfp4 import E2M1_MAX, E4M3_MAX

PART = "dit."  # the denoiser within the whole model


def collect(model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """The facts of `layers` (module paths in `model`), on the CPU, under names of the whole model.

    A layer whose input was never anything but zero has no scale: it stays dynamic.
    """
    facts: dict[str, Tensor] = {}
    for layer in layers:
        module: Any = model.get_submodule(layer)
        found = _input_facts(module.input_quantizer) | _low_rank(module.weight_quantizer)
        facts |= {f"{PART}{layer}.{fact}": value for fact, value in found.items()}
    return {name: value.detach().cpu().contiguous().clone() for name, value in facts.items()}


def _input_facts(quantizer: Any) -> dict[str, Tensor]:
    facts = {}
    if quantizer.amax is not None and quantizer.amax > 0:
        facts["input_scale"] = quantizer.amax.float().reshape(()) / (E2M1_MAX * E4M3_MAX)
    if (smoothing := quantizer.pre_quant_scale) is not None:
        facts["pre_quant_scale"] = smoothing.reshape(-1)
    return facts


def _low_rank(quantizer: Any) -> dict[str, Tensor]:
    """ModelOpt's `lora_a` [r, K] and `lora_b` [N, r]."""
    down = getattr(quantizer, "svdquant_lora_a", None)
    up = getattr(quantizer, "svdquant_lora_b", None)
    if down is None or up is None:
        return {}
    return {"lora_down": down.to(torch.bfloat16), "lora_up": up.to(torch.bfloat16)}
