"""What the four bits of each linear do to the velocity, to first order and all at once.

Quantizing one linear adds an error e to its output, and the rest of the model turns it into J e, J
being the Jacobian of the velocity by that output. For random signs r, E[(r . J e)^2] = |J e|^2
(Hutchinson 1990), and r.J of every linear comes from one backward pass. So a few passes rank all
linears by what keeping them in bf16 would buy back; no layer is quantized alone and run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llvq.calibrate.rollout import EagerRollout
from llvq.formats import nvfp4
from llvq.formats.nvfp4 import Nvfp4
from llvq.models.config import StreamConfig
from llvq.models.dit import CausalWanDit
from llvq.recipe import LinearRecipe

PROBES = 2  # backward passes per call of the model


@dataclass(frozen=True)
class Quantized:
    """A linear with its weight in NVFP4 beside the one it has."""

    linear: nn.Linear
    weight: Nvfp4
    activation_rule: str

    def error(self, x: Tensor, y: Tensor) -> Tensor:
        """What W4A4 adds to the output `y` of the linear for the input `x`."""
        packed = nvfp4.quantize(x, block_rule=self.activation_rule)
        weight = nvfp4.dequantize(*self.weight, x.dtype)
        values = nvfp4.dequantize(*packed, x.dtype)
        return F.linear(values, weight, self.linear.bias) - y


class SensitiveRollout(EagerRollout):
    """A video whose every velocity is asked which linear would move it how far.

    `scores` adds up the energy |J e|^2 of each layer, over calls and elements of the velocity;
    `energy` that of the velocities themselves.
    """

    def __init__(
        self,
        model: CausalWanDit,
        stream: StreamConfig,
        layers: Mapping[str, Quantized],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(model, stream)
        self.layers = layers
        self.scores = dict.fromkeys(layers, 0.0)
        self.energy = 0.0
        self._random = torch.Generator().manual_seed(seed)

    def call(
        self, index: int, latent: Tensor, timestep: float, prompt: Tensor, image: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        if timestep == 0:  # the refresh: nobody reads its velocity
            return super().call(index, latent, timestep, prompt, image)
        with torch.enable_grad():
            tape = _Tape(self.layers)
            latent, prompt = latent.detach().requires_grad_(), prompt.detach().requires_grad_()
            velocity, keys, values = super().call(index, latent, timestep, prompt, image)
            tape.close()
            self._score(velocity, tape)
        return velocity.detach(), [k.detach() for k in keys], [v.detach() for v in values]

    def _score(self, velocity: Tensor, tape: _Tape) -> None:
        self.energy += float(velocity.detach().double().square().sum())
        outputs = list(tape.outputs.values())
        for probe in range(PROBES):
            signs = torch.randint(0, 2, velocity.shape, generator=self._random)
            cotangent = (2.0 * signs - 1.0).to(velocity.device, velocity.dtype)
            more = probe + 1 < PROBES
            rows = torch.autograd.grad(velocity, outputs, cotangent, retain_graph=more)
            for name, row in zip(tape.outputs, rows, strict=True):
                moved = float((row.double() * tape.errors[name].double()).sum())
                self.scores[name] += moved**2 / PROBES


class _Tape:
    """Outputs of the linears of one forward pass, and the error that 4 bits would add to each."""

    def __init__(self, layers: Mapping[str, Quantized]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.errors: dict[str, Tensor] = {}
        self._hooks = [
            layer.linear.register_forward_hook(_Recorder(self, name, layer))
            for name, layer in layers.items()
        ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


@dataclass(frozen=True)
class _Recorder:
    tape: _Tape
    name: str
    layer: Quantized

    def __call__(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.tape.outputs[self.name] = output
        with torch.no_grad():
            self.tape.errors[self.name] = self.layer.error(inputs[0], output)


def quantized(
    model: CausalWanDit, layers: Sequence[str], recipe: LinearRecipe
) -> dict[str, Quantized]:
    """The linears of those module paths, their weights packed by the recipe's rule."""
    found = {}
    for name in layers:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight = nvfp4.quantize(linear.weight, block_rule=recipe.weight_rule)
        found[name] = Quantized(linear, weight, recipe.activation_rule)
    return found
