"""Stages lowered for a target: what they compute, take and give there, and what runs each op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llvq import graphs
from llvq.backends.base import Target
from llvq.compiler import Stage
from llvq.passes import Report
from llvq.passes.lower import lower
from llvq.passes.lowering import lower_to_numerics, move_to_condition, stream_decoder
from llvq.passes.spec import verify_graph
from llvq.program import Level, Program
from llvq.recipe import Recipe


@dataclass(frozen=True)
class Lowered:
    """Stages as a box has them, and the lines of the pass table of their lowering."""

    stages: dict[str, Stage]
    reports: tuple[Report, ...]


def lower_stages(stages: Mapping[str, Stage], recipe: Recipe, target: Target) -> Lowered:
    """Lower copies of the stages of a program. Raises TargetError."""
    gms = {n: graphs.load(graphs.dump(s.graph), device="meta") for n, s in stages.items()}
    program = Program(
        gms,
        (),
        (),
        Level.STAGED,
        stage_inputs={name: stage.inputs for name, stage in stages.items()},
        stage_outputs={name: stage.outputs for name, stage in stages.items()},
    )
    reports = stream_decoder(program, recipe) + lower_to_numerics(gms, target.numerics, recipe)
    reports += move_to_condition(program, target.numerics, recipe)
    lower(gms, target)
    for name, gm in gms.items():
        verify_graph(name, gm, Level.LOWERED)
    made = {
        name: Stage(gm, program.stage_inputs[name], program.stage_outputs[name])
        for name, gm in gms.items()
    }
    return Lowered(made, tuple(reports))


def loops_of(
    loops: Iterable[tuple[str, str]], stages: Mapping[str, Stage]
) -> tuple[tuple[str, str], ...]:
    """The loops of a program, (input, output) each, whose output its stages still return."""
    returned = {name for stage in stages.values() for name in stage.outputs}
    return tuple((source, target) for source, target in loops if target in returned)
