from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llvq.compiler import stages_of, with_weights
from llvq.passes.canonicalize import canonicalize
from llvq.passes.split_stages import split_stages
from llvq.program import Program
from llvq.sources import DictSource

RATES = {"prompt": "prompt", "time": "step", "sigma": "emit"}


class Model(nn.Module):
    """Something from every rate; the table depends on no input."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.clock = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, time: Tensor, prompt: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        table = torch.arange(8, dtype=torch.float32).cos()
        text, clock = self.text(prompt), self.clock(time)
        velocity = x * clock + text.sum(0) * table
        return velocity, x - sigma * velocity, text


class OneRate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin() + 1


def sample(tokens: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, 8), (1, 8), (5, 8), (1,))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def run(program: Program, module: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    source = DictSource({**state, **program.constants})
    for stage in with_weights(stages_of(program), program.weights, source).values():
        values = values | stage(values)
    return values


def test_rewrites(export, apply, golden):
    program = export(Model(), *sample(3), rates=RATES)
    (book,) = apply(program, canonicalize, split_stages)
    assert (book.sites, book.hits) == (4, 4)
    assert list(program.graphs) == ["condition", "modulate", "denoise", "output"]
    golden("split_stages", program)


def test_a_node_runs_at_the_fastest_rate_of_its_inputs(export, apply):
    program = export(Model(), *sample(3), rates=RATES)
    apply(program, canonicalize, split_stages)
    inputs = {stage: [spec.name for spec in specs] for stage, specs in program.stage_inputs.items()}
    assert inputs["condition"] == ["prompt"] and inputs["modulate"] == ["time"]
    assert "prompt" not in inputs["denoise"] and "sigma" not in inputs["denoise"]
    assert "sigma" in inputs["output"] and "prompt" not in inputs["output"]


def test_two_slow_rates_together_run_at_every_call(export, apply):
    program = export(Model(), *sample(3), rates={"time": "step", "prompt": "prompt"})
    apply(program, canonicalize, split_stages)
    assert list(program.graphs) == ["condition", "modulate", "denoise"]


def test_one_rate_is_one_stage(export, apply):
    program = export(OneRate(), torch.randn(3))
    apply(program, canonicalize, split_stages)
    assert list(program.graphs) == ["denoise"]


@pytest.mark.parametrize("tokens", [3, 11])
@pytest.mark.parametrize("rates", [RATES, {"prompt": "prompt"}, {}])
def test_keeps_the_numbers(rates, tokens, export, apply):
    module, inputs = Model(), sample(tokens)
    program = export(module, *inputs, rates=rates)
    apply(program, canonicalize, split_stages)
    found = run(program, module, dict(zip(("x", "time", "prompt", "sigma"), inputs, strict=True)))
    for name, wanted in zip(program.outputs, module(*inputs), strict=True):
        assert torch.equal(found[name], wanted)


def test_is_idempotent(export, apply):
    program = export(Model(), *sample(3), rates=RATES)
    apply(program, canonicalize, split_stages)
    before = program.digest()
    (book,) = apply(program, split_stages)
    assert (book.sites, book.hits) == (0, 0) and program.digest() == before
