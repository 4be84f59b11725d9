"""A small exported model with most of what a stage graph holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.register_buffer("gain", torch.linspace(0.5, 2.0, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.q(x) * self.gain
        # inf as an argument, a dtype keyword, a device keyword, a tuple-valued operator.
        y = y.masked_fill(y > 1e30, float("-inf")).to(torch.bfloat16)
        steps = torch.arange(4, device=x.device, dtype=torch.float32)
        left, right = y.float().split(4, dim=-1)
        largest, _ = left.max(-1)
        return torch.cat([left * steps, right], -1) + largest[..., None]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, input: Tensor, scale: Tensor) -> dict[str, object]:
        x = input
        for block in self.blocks:
            x = block(x)
        return {"x": x, "rest": [x * scale, (x.flatten(0), None)]}


def export(model: nn.Module, *args: Tensor) -> GraphModule:
    exported = torch.export.export(model, args, strict=False)
    return exported.module(check_guards=False)


@pytest.fixture(scope="session")
def model() -> Model:
    torch.manual_seed(0)
    return Model().requires_grad_(False)


@pytest.fixture(scope="session")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 8, generator=generator), torch.tensor(0.3)


@pytest.fixture
def exported(model: Model, inputs: tuple[Tensor, Tensor]) -> GraphModule:
    return export(model, *inputs)


@pytest.fixture
def exported_on_meta() -> GraphModule:
    with torch.device("meta"):
        return export(Model().requires_grad_(False), torch.empty(3, 8), torch.empty(()))


@pytest.fixture(scope="session")
def llvq_op() -> Iterator[torch._ops.OpOverload]:
    """`llvq.test_scale.default`: a stand-in for the dialect, registered for this session."""
    library = torch.library.Library("llvq", "FRAGMENT")
    library.define("test_scale(Tensor x, float by) -> Tensor")
    library.impl("test_scale", lambda x, by: x * by, "CompositeExplicitAutograd")
    yield torch.ops.llvq.test_scale.default
    library._destroy()
