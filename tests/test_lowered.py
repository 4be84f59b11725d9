"""Stages lowered as a whole: what a box gets, for every target."""

from __future__ import annotations

import pytest

from llvq import graphs
from llvq.backends.base import CPU, TARGETS, Target
from llvq.compiler import Compiled
from llvq.lowered import loops_of, lower_stages
from llvq.passes.lowering import LOWERINGS, PER_PROMPT, STREAMING
from llvq.program import provenance
from llvq.recipe import NVFP4
from llvq.runtime.executable import DECODING


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.name}-{t.numerics}")
def test_every_target_streams_decoders(target: Target, compiled_whole: Compiled) -> None:
    lowered = lower_stages(compiled_whole.stages, NVFP4, target)
    steps = [*STREAMING, *LOWERINGS[target.numerics], *PER_PROMPT.get(target.numerics, ())]
    assert [report.name for report in lowered.reports] == [step.name for step in steps]
    assert lowered.stages.keys() == compiled_whole.stages.keys()
    for name in DECODING:
        stage = lowered.stages[name]
        assert stage.outputs == (f"{name}.frames",)
        assert {spec.rate for spec in stage.inputs} == {"call", "emit", "state"}
        ours = [n for n in stage.graph.graph.nodes if str(n.target).startswith("llvq.")]
        assert ours and all("impl" in provenance(node) for node in ours)
        graphs.load(graphs.dump(stage.graph), device="cpu")


def test_the_stages_of_a_program_stay_as_they_are(compiled_whole: Compiled) -> None:
    before = {name: graphs.digest(stage.graph) for name, stage in compiled_whole.stages.items()}
    lower_stages(compiled_whole.stages, NVFP4, CPU)
    assert {n: graphs.digest(s.graph) for n, s in compiled_whole.stages.items()} == before


def test_other_stages_take_and_give_what_they_did(compiled_whole: Compiled) -> None:
    lowered = lower_stages(compiled_whole.stages, NVFP4, CPU)
    for name, stage in compiled_whole.stages.items():
        if name not in DECODING:
            found = lowered.stages[name]
            assert (found.inputs, found.outputs) == (stage.inputs, stage.outputs)


def test_what_is_returned_no_more_is_no_loop(compiled_whole: Compiled) -> None:
    loops = compiled_whole.facts.loops
    assert loops and loops_of(loops, compiled_whole.stages) == loops
    assert loops_of(loops, lower_stages(compiled_whole.stages, NVFP4, CPU).stages) == ()
