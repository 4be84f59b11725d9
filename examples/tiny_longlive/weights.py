"""Modules trained through fp32 copies of their weights, all in one buffer, and a running mean.

One buffer makes an optimizer step some hundred kernels, however many parameters there are:
matrices of one shape are orthogonalised together, and everything else is one long vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor, nn

from examples.tiny_longlive.replicas import ALONE, Replicas

ALIGN = 8  # elements: every parameter starts at a multiple of 16 bytes
MOMENTUM, DECAY = 0.95, 0.01  # of Muon
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
EPS = 1e-8  # of Adam
# Of denoiser, text encoder and VAE: parts of the names of what is neither first nor last.
INSIDE = ("blocks.", "encoder.block.", "samples.", ".middle.")


class Masters:
    """Optimizer and fp32 weights of `modules`, whose own parameters become views of one buffer.

    Matrices inside blocks move by Muon if `muon` (its update has the size of one by Adam), all
    else by Adam. `step` waits for nothing and allocates alike every time. `replicas` take it
    together, each with gradients of its own.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        rate: float,
        muon: bool = False,
        betas: tuple[float, float] = (0.9, 0.99),
        clip: float = 1.0,
        ema: float = 0.998,
        replicas: Replicas = ALONE,
    ) -> None:
        named = [pair for module in modules for pair in module.named_parameters()]
        matrices = [p for name, p in named if muon and _is_matrix(name, p)]
        matrices.sort(key=_as_matrix)
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        self.rate, self.betas, self.clip, self.ema, self.steps = rate, betas, clip, ema, 0
        self.replicas = replicas
        self.weight, self.grad, starts = _flattened([*matrices, *rest])
        self.groups = _groups(matrices, starts)
        self.rest = slice(starts[len(matrices)], None)
        self.master = self.weight.to(torch.float32, copy=True)
        self.mean, self.first = self.master.clone(), torch.zeros_like(self.master)
        self.second = torch.zeros_like(self.master[self.rest])

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> Tensor:
        """Apply and clear the gradients, at `scale` times the rate; returns their norm."""
        self.steps += 1
        grad = self.replicas.average(self.grad.to(torch.float32, copy=True))
        self.grad.zero_()
        norm = grad.norm()
        grad *= (self.clip / (norm + 1e-6)).clamp(max=1.0)
        for area, shape in self.groups:
            self._muon(area, shape, grad, self.rate * scale)
        self._adam(grad[self.rest], self.rate * scale)
        self.weight.copy_(self.master)
        self.mean.lerp_(self.master, 1 - min(self.ema, (1 + self.steps) / (10 + self.steps)))
        return norm

    def _muon(self, area: slice, shape: tuple[int, int, int], grad: Tensor, rate: float) -> None:
        momentum, new = self.first[area], grad[area]
        momentum.lerp_(new, 1 - MOMENTUM)
        update = orthogonal(new.lerp(momentum, MOMENTUM).view(shape)).flatten()
        master = self.master[area].mul_(1 - rate * DECAY)
        master.add_(update, alpha=-rate * 0.2 * math.sqrt(max(shape[1:])))

    def _adam(self, grad: Tensor, rate: float) -> None:
        first, second = self.first[self.rest], self.second
        first.lerp_(grad, 1 - self.betas[0])
        second.lerp_(grad.square(), 1 - self.betas[1])
        biases = [1 - beta**self.steps for beta in self.betas]
        size = (second / biases[1]).sqrt_().add_(EPS)
        self.master[self.rest].addcdiv_(first, size, value=-rate / biases[0])

    @torch.no_grad()
    def use_mean(self) -> None:
        """Give the modules the running mean. The masters stay, and the next `step` undoes it."""
        self.weight.copy_(self.mean)

    @torch.no_grad()
    def use_masters(self) -> None:
        """Undo `use_mean`."""
        self.weight.copy_(self.master)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the closest orthogonal matrix of each [n, rows, columns], fp32, as Muon does it.

    Five Newton-Schulz steps in bf16: singular values end between 0.7 and 1.2, not all at 1.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def rate_scale(fraction: float, local: float, *, falls_from: float = 0.4) -> float:
    """Warm-up in the first 2% of a call; over all of a phase flat, then down to a hundredth.

    Every call warms up, since its optimizer is new; only the end of the phase makes rates fall.
    """
    fall = (1 - min(fraction, 1.0)) / (1 - falls_from)
    return min(local / 0.02, 1.0) * min(max(fall, 0.01), 1.0)


def frozen(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.requires_grad_(False)


def _flattened(parameters: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor, list[int]]:
    """Weights and gradients in one vector each, which the parameters then are views of.

    Also where each parameter starts, and the end.
    """
    sizes = [-(-p.numel() // ALIGN) * ALIGN for p in parameters]
    starts = [0, *accumulate(sizes)]
    flat, grad = (parameters[0].new_zeros(starts[-1], requires_grad=False) for _ in "wg")
    for start, parameter in zip(starts, parameters, strict=False):
        place = slice(start, start + parameter.numel())
        flat[place] = parameter.detach().flatten()
        parameter.data = flat[place].view(parameter.shape)
        parameter.grad = grad[place].view(parameter.shape)
    return flat, grad, starts


def _groups(
    matrices: Sequence[nn.Parameter], starts: Sequence[int]
) -> list[tuple[slice, tuple[int, int, int]]]:
    """Where matrices of one shape lie, and their number and shape. They are sorted by shape."""
    found = []
    for shape, group in groupby(range(len(matrices)), key=lambda i: _as_matrix(matrices[i])):
        places = list(group)
        # Padding between matrices would be in the way of their being one tensor.
        assert math.prod(shape) % ALIGN == 0
        start, size = starts[places[0]], len(places) * math.prod(shape)
        found.append((slice(start, start + size), (len(places), *shape)))
    return found


def _as_matrix(parameter: Tensor) -> tuple[int, int]:
    """Rows and columns of a linear layer's weight, or of a convolution's as one."""
    return len(parameter), parameter[0].numel()


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """A layer inside of a network: neither an embedding nor one of its ends."""
    inside = any(part in name for part in INSIDE) and name.endswith(".weight")
    return inside and parameter.ndim >= 2 and "relative_attention_bias" not in name
