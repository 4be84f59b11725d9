"""What a ModelOpt calibration has gathered so far, as tensors that can be saved and put back.

These are running maxima in the calibrators of its quantizers, and the running sums of its AWQ
search. Everything else in the model follows from the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

AWQ_COUNTS = ("num_cache_steps", "num_search_steps", "num_tokens")


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """The statistics of a model in the middle of a phase, by module path and name."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        found |= {f"{name}.{key}": value for key, value in _of_module(module)}
    return {name: value.detach().cpu().clone().contiguous() for name, value in found.items()}


def put_back(model: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Continue where `gathered` was called, in a model at the beginning of the same phase."""
    modules = dict(model.named_modules())
    for path, value in statistics.items():
        name, _, key = path.rpartition(".")
        _restore(modules[name], key, value, next(model.parameters()).device)


def _of_module(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    calibrator: Any = getattr(module, "_calibrator", None)
    if getattr(calibrator, "_calib_amax", None) is not None:
        yield "calib_amax", calibrator._calib_amax
    amax: Any = getattr(module, "_amax", None)
    if calibrator is not None and amax is not None:
        yield "amax", amax
    helper: Any = getattr(module, "awq_lite", None)
    if helper is not None:
        if isinstance(helper.act_scale, Tensor):
            yield "act_scale", helper.act_scale
        for count in AWQ_COUNTS:
            yield count, torch.tensor(float(getattr(helper, count)), dtype=torch.float64)
        yield "loss", torch.stack(list(helper.loss.values()))


def _restore(module: nn.Module, key: str, value: Tensor, device: torch.device) -> None:
    if key == "calib_amax":
        module._calibrator._calib_amax = value.to(device)  # type: ignore[union-attr]
    elif key == "amax":
        module.amax = value.to(device)
    elif key == "act_scale":
        module.awq_lite.act_scale = value.to(device)  # type: ignore[union-attr]
    elif key == "loss":
        losses: Any = module.awq_lite.loss  # type: ignore[union-attr]
        losses.update(zip(losses, value.to(device).unbind(), strict=True))
    else:
        assert key in AWQ_COUNTS, key
        number = value.item()
        setattr(module.awq_lite, key, number if key == "num_tokens" else int(number))
