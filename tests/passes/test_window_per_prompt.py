from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llvq.compiler import stages_of, with_weights
from llvq.passes.activations_to_fp8 import activations_to_fp8
from llvq.passes.attention_to_fp8 import attention_to_fp8
from llvq.passes.canonicalize import canonicalize
from llvq.passes.fuse_attention_fp8 import fuse_attention_fp8
from llvq.passes.fuse_linear import fuse_linear
from llvq.passes.insert_quantize import insert_quantize
from llvq.passes.raise_attention import raise_attention
from llvq.passes.split_stages import split_stages
from llvq.passes.window_per_prompt import window_per_prompt
from llvq.program import Program
from llvq.sources import DictSource
from tests.passes.test_attention_to_fp8 import HEADS, D, attend

BEFORE = (
    canonicalize,
    raise_attention,
    insert_quantize,
    fuse_linear,
    split_stages,
    activations_to_fp8,
    attention_to_fp8,
    fuse_attention_fp8,
)
E = HEADS * D
RATES = {"text": "prompt", "time": "step"}
IN_STAGE = {"its keys and values are not results of condition": 1}


class Layers(nn.Module):
    """Two layers that attend to a text, each to K and V of its own; `twice`: both to the first's.

    `moving`: the second one's V change with the time.
    """

    def __init__(self, *, twice: bool = False, moving: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (
            nn.ModuleList([nn.Linear(E, E) for _ in range(2)]) for _ in range(4)
        )
        self.twice, self.moving = twice, moving

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, ...]:
        for layer in range(2):
            own = 0 if self.twice else layer
            k, v = (w(text).unflatten(-1, (HEADS, D)) for w in (self.k[own], self.v[own]))
            v = v * time if self.moving and layer else v
            y = attend(self.q[layer](x).unflatten(-1, (HEADS, D)), k, v)
            x = x + self.o[layer](y.flatten(2))
        return (x,)


def sample(tokens: int, batch: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((batch, tokens, E), (batch, 5, E), (1,))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def run(program: Program, module: nn.Module, *inputs: Tensor) -> Tensor:
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    source = DictSource({**state, **program.constants})
    values = dict(zip(("x", "text", "time"), inputs, strict=True))
    for stage in with_weights(stages_of(program), program.weights, source).values():
        values = values | stage(values)
    return values[program.outputs[0]]


def test_rewrites(export, apply, golden):
    program = export(Layers(), *sample(3), rates=RATES)
    (book,) = apply(program, *BEFORE, window_per_prompt)
    assert (book.sites, book.hits) == (2, 2)
    parts = ("k_window", "v_window", "window_scales")
    names = [f"condition.{part}_{layer}" for layer in range(2) for part in parts]
    assert sorted(program.stage_outputs["condition"]) == sorted(names)
    assert {s.name: s.rate for s in program.stage_inputs["denoise"]} == {
        "x": "call",
        **dict.fromkeys(names, "prompt"),
    }
    golden("window_per_prompt", program)


def test_a_text_that_is_attended_twice_is_brought_there_once(export, apply, count):
    program = export(Layers(twice=True), *sample(3), rates=RATES)
    (book,) = apply(program, *BEFORE, window_per_prompt)
    assert book.hits == 2 and len(program.stage_outputs["condition"]) == 3
    assert count(program, "llvq.window_fp8") == 1


def test_what_changes_with_the_time_stays(export, apply, count):
    program = export(Layers(moving=True), *sample(3), rates=RATES)
    (book,) = apply(program, *BEFORE, window_per_prompt)
    assert (book.sites, book.hits, dict(book.excluded)) == (2, 1, IN_STAGE)
    assert count(program, "llvq.attention_quantize_fp8") == 1
    outputs = program.stage_outputs["condition"]
    taken = [s.name for s in program.stage_inputs["denoise"] if s.name.startswith("condition.")]
    assert sorted(outputs) == sorted(taken) and len(outputs) == 3 + 2


@pytest.mark.parametrize(("rates", "batch"), [({}, 1), (RATES, 2)])
def test_without_a_text_of_one_video_nothing_moves(rates, batch, export, apply):
    program = export(Layers(), *sample(3, batch), rates=rates)
    apply(program, *BEFORE)
    before = program.text(), dict(program.stage_inputs), dict(program.stage_outputs)
    (book,) = apply(program, window_per_prompt)
    assert book.hits == 0 and book.excluded.total() == book.sites == 2
    assert before == (program.text(), program.stage_inputs, program.stage_outputs)


@pytest.mark.parametrize("tokens", [3, 11])
@pytest.mark.parametrize("options", [{}, {"twice": True}, {"moving": True}])
def test_keeps_the_numbers(options, tokens, export, apply):
    module, inputs = Layers(**options), sample(tokens)
    program = export(module, *inputs, rates=RATES)
    apply(program, *BEFORE)
    wanted = run(program, module, *inputs)
    apply(program, window_per_prompt)
    assert torch.equal(run(program, module, *inputs), wanted)


def test_is_idempotent(export, apply):
    program = export(Layers(), *sample(3), rates=RATES)
    apply(program, *BEFORE, window_per_prompt)
    before = program.digest()
    (book,) = apply(program, window_per_prompt)
    assert (book.sites, book.hits) == (0, 0) and program.digest() == before
