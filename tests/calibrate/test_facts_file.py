"""calibration.safetensors: joins its checkpoint, and no other one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from llvq.calibrate.facts_file import check_bare, dump_facts, read_header, with_facts
from llvq.calibrate.identity import checkpoint_digest
from llvq.calibration import LayerFacts
from llvq.checkpoints.model import VideoModel
from llvq.errors import CheckpointError
from llvq.sources import PackedWeight

LAYER = "dit.blocks.0.ffn.0"
SCALE = {f"{LAYER}.input_scale": torch.tensor(0.25)}


@pytest.fixture
def facts(tmp_path: Path, model: VideoModel) -> Path:
    path = tmp_path / "calibration.safetensors"
    made = {"checkpoint": checkpoint_digest(model.source, "dit."), "chunks": 2}
    path.write_bytes(dump_facts(SCALE, made))
    return path


def test_facts_join_the_checkpoint(model: VideoModel, facts: Path) -> None:
    joined = with_facts(model, facts)
    assert joined.calibration == {LAYER: LayerFacts(input_scale=f"{LAYER}.input_scale")}
    assert joined.source.read(f"{LAYER}.input_scale") == 0.25
    assert set(joined.source.names()) == {*model.source.names(), *SCALE}
    assert read_header(facts)["chunks"] == 2


def test_a_second_calibration_is_refused(model: VideoModel, facts: Path) -> None:
    with pytest.raises(CheckpointError, match="brings a calibration of its own"):
        with_facts(with_facts(model, facts), facts)


def test_facts_of_another_checkpoint(tmp_path: Path, model: VideoModel) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(dump_facts(SCALE, {"checkpoint": "0" * 64}))
    with pytest.raises(CheckpointError, match="made for another checkpoint"):
        with_facts(model, path)


@pytest.mark.parametrize(
    ("tensors", "because"),
    [
        ({f"{LAYER}.scale": torch.ones(())}, "is no fact about a linear"),
        ({"dit.nowhere.input_scale": torch.ones(())}, "dit.nowhere.weight not"),
        ({f"{LAYER}.pre_quant_scale": torch.ones(3)}, "expected"),
        ({f"{LAYER}.lora_up": torch.ones(128, 2)}, "one half"),
    ],
)
def test_facts_that_do_not_fit(
    tmp_path: Path, model: VideoModel, tensors: dict[str, torch.Tensor], because: str
) -> None:
    path = tmp_path / "calibration.safetensors"
    made = {"checkpoint": checkpoint_digest(model.source, "dit.")}
    path.write_bytes(dump_facts(tensors, made))
    with pytest.raises(CheckpointError) as caught:
        with_facts(model, path)
    assert because in str(caught.value.because)


@pytest.mark.parametrize("header", [None, "{", "[]", '{"format":2}'])
def test_another_file(tmp_path: Path, model: VideoModel, header: str | None) -> None:
    metadata = None if header is None else {"llvq.calibration": header}
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(SCALE, metadata=metadata))
    with pytest.raises(CheckpointError, match="not a calibration of llvq"):
        with_facts(model, path)


def test_half_a_file(facts: Path, model: VideoModel) -> None:
    facts.write_bytes(facts.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match="damaged"):
        with_facts(model, facts)


def test_a_packed_checkpoint_is_refused(model: VideoModel) -> None:
    class Packed:
        names = staticmethod(model.source.names)
        spec, read, read_rows = model.source.spec, model.source.read, model.source.read_rows

        @staticmethod
        def packed(name: str) -> PackedWeight | None:
            return object() if name == f"{LAYER}.weight" else None  # type: ignore[return-value]

    with pytest.raises(CheckpointError, match="quantized already") as caught:
        check_bare(replace(model, source=Packed()))  # type: ignore[arg-type]
    assert LAYER in str(caught.value.because)


def test_the_same_facts_are_the_same_bytes() -> None:
    pair = SCALE | {"dit.a.input_scale": torch.ones(())}
    swapped = dict(reversed(pair.items()))
    assert dump_facts(pair, {"a": 1, "b": 2}) == dump_facts(swapped, {"b": 2, "a": 1})
