"""bf16 modules trained through fp32 copies of their weights, and a running mean of these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon


class Masters:
    """Optimizer and fp32 weights of `modules`, whose own parameters follow in their dtype."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        rate: float,
        muon: bool = False,
        betas: tuple[float, float] = (0.9, 0.99),
        clip: float = 1.0,
        ema: float = 0.998,
    ) -> None:
        named = [pair for module in modules for pair in module.named_parameters()]
        self.weights = [parameter for _, parameter in named]
        chosen = [muon and _is_matrix(name, p) for name, p in named]
        self.masters = [p.detach().float().clone() for p in self.weights]
        self.mean = [master.clone() for master in self.masters]
        self.rate, self.clip, self.ema, self.steps = rate, clip, ema, 0
        rest = [m for m, matrix in zip(self.masters, chosen, strict=True) if not matrix]
        matrices = [m for m, matrix in zip(self.masters, chosen, strict=True) if matrix]
        self.optimizers: list[torch.optim.Optimizer] = [
            AdamW(rest, rate, betas=betas, weight_decay=0.0)
        ]
        if matrices:
            self.optimizers.append(
                Muon(matrices, rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, scale: float = 1.0) -> Tensor:
        """Apply and clear the gradients, at `scale` times the rate; returns their norm."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
            weight.grad = None
        norm = nn.utils.clip_grad_norm_(self.masters, self.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * scale
            optimizer.step()
        self.steps += 1
        decay = min(self.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)
            torch._foreach_lerp_(self.mean, self.masters, 1 - decay)
        return norm

    def use_mean(self) -> None:
        """Give the modules the running mean. The masters stay."""
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.mean)


def rate_scale(progress: float, warmup: float = 0.02) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))
    return min(progress / warmup, 1.0) * max(cosine, 0.01)


def frozen(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.requires_grad_(False)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """A linear layer inside a block: neither an embedding nor an end of the network."""
    inside = name.startswith(("blocks.", "encoder.block."))
    return inside and parameter.ndim == 2 and "relative_attention_bias" not in name
