"""Which frames go into which ring is read off the two stages, by their shapes."""

from __future__ import annotations

import pytest
import torch

from llvq.errors import MissError
from llvq.program import Ring, output_node
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import DECODING
from tests.passes.decoders import HW, calls, staged, stream

aten = torch.ops.aten


def rings_of(name: str, latents: int = 1) -> list[Ring]:
    program = staged(name, latents)
    (book,) = stream(program, "hold-rings")
    assert (book.sites, book.hits) == (len(program.rings), len(program.rings))
    return list(program.rings.values())


@pytest.mark.parametrize("latents", [1, 2])
def test_a_ring_has_room_for_the_frames_of_a_call_and_what_is_before(latents: int) -> None:
    (height, width), rings = HW, rings_of("twice", latents)
    assert [ring.index for ring in rings] == list(range(len(rings)))
    sizes = {ring.rate: ring.frame[0] // height for ring in rings if ring.context}
    assert sizes == {1: 1, 2: 2, 4: 4}
    for ring in rings:
        assert ring.frames == latents * ring.rate
        slots, *inside, channels = ring.spec.shape
        assert slots == ring.frames + ring.context and channels == ring.frame[2]
        assert inside == [ring.frame[0] + 2, ring.frame[1] + 2]
        assert ring.frame[1] * height == ring.frame[0] * width


def test_what_doubles_time_does_not_get_the_first_frame(latents: int = 2) -> None:
    rings = rings_of("twice", latents)
    skipping = [ring for ring in rings if ring.skip]
    assert [ring.rate for ring in skipping] == [1, 2]
    assert all("time_conv" in ring.weight for ring in skipping)


@pytest.mark.parametrize(("name", "ups"), [("packed", 2), ("plain", 2), ("twice", 2)])
def test_the_way_up_has_rings_without_a_past(name: str, ups: int) -> None:
    *past, first, second = rings_of(name)
    assert ups == 2 and all("resample" in ring.weight for ring in (first, second))
    assert (first.context, second.context) == (0, 0)
    assert {ring.context for ring in past} == {2}


def test_both_stages_take_all_rings_and_return_frames_alone() -> None:
    program = staged("packed")
    stream(program, "hold-rings")
    for stage in DECODING:
        specs = program.stage_inputs[stage]
        assert InputSpec("decoded", torch.int64, (), "emit") in specs
        held = [spec for spec in specs if spec.rate == "state"]
        assert held == [ring.spec for ring in program.rings.values()]
        assert program.stage_outputs[stage] == (f"{stage}.frames",)
        (results,) = output_node(program.graphs[stage].graph).args
        assert len(results) == 1  # type: ignore[arg-type]


def test_a_program_without_a_decoder_stays_as_it_is() -> None:
    program = staged("packed")
    for stage in DECODING:
        del program.graphs[stage], program.stage_inputs[stage], program.stage_outputs[stage]
    before = program.digest()
    (book,) = stream(program)
    assert (book.sites, program.rings, program.digest()) == (0, {}, before)


def test_a_state_that_no_convolution_reads_is_a_miss() -> None:
    program = staged("packed")
    conv = calls(program, "decode", aten.conv3d.default)[1]
    conv.args = (conv.args[0].args[0][1], *conv.args[1:])  # type: ignore[union-attr, index]
    with pytest.raises(MissError, match="left 1 of") as caught:
        stream(program, "hold-rings")
    assert "no convolution reads it in both stages" in str(caught.value)
