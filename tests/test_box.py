"""From a compiled model to folders on disk and back: same frames, same id, nothing half written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llvq import box as box_module
from llvq.artifact import Box
from llvq.backends.base import CPU, Target
from llvq.box import export_box, write_program
from llvq.calibration import LayerFacts
from llvq.compiler import Compiled
from llvq.errors import ArtifactError, FormatError, OutputError, TargetError
from llvq.models.config import ModelConfig
from llvq.quality.metrics import psnr_db
from llvq.runtime.executable import Executable
from llvq.runtime.load import load, open_checked
from llvq.runtime.session import Prompt, Session
from llvq.sources import DictSource
from llvq.weights import WeightRecord


@pytest.fixture(scope="module")
def source(
    whole_config: ModelConfig, make_whole_weights: Callable[[ModelConfig], DictSource]
) -> DictSource:
    return make_whole_weights(whole_config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("boxes")


@pytest.fixture(scope="module")
def program(folder: Path, compiled_whole: Compiled, source: DictSource) -> Box:
    write_program(compiled_whole, source, folder / "m.nvfp4")
    return open_checked(folder / "m.nvfp4", kinds=("program",))


@pytest.fixture(scope="module")
def box(folder: Path, program: Box) -> Path:
    export_box(program, CPU, folder / "m.llvq")
    return folder / "m.llvq"


def video(executable: Executable) -> tuple[torch.Tensor, torch.Tensor]:
    facts = executable.facts
    embeds = torch.ones(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype)
    chunks = list(Session(executable, [Prompt(embeds)] * 2, seed=5))
    frames = torch.cat([chunk.frames for chunk in chunks if chunk.frames is not None])
    return torch.cat([chunk.latents for chunk in chunks]), frames


def test_a_loaded_box_makes_the_video_of_the_compiled_model(
    box: Path, executable: Executable
) -> None:
    """To the bit as far as latents; frames are decoded as a stream, which rounds elsewhere."""
    (latents, frames), (wanted, shown) = video(load(box)), video(executable)
    assert torch.equal(latents, wanted)
    assert psnr_db(shown, frames) > 40


def test_the_decoder_of_a_box_is_streamed(box: Path, program: Box) -> None:
    manifest = open_checked(box).manifest
    assert manifest["state"] == {**program.manifest["state"], "loops": []}
    assert program.manifest["state"]["loops"]
    for stage in ("decode_first", "decode"):
        assert manifest["stages"][stage] == {"outputs": [f"{stage}.frames"]}
        rates = {spec["name"]: spec["rate"] for spec in manifest["contract"][stage]}
        assert rates["decoded"] == "emit" and rates["decode_state.0"] == "state"
    assert "stream-frames" in [row["name"] for row in manifest["passes"]]


def test_the_same_inputs_give_the_same_id(
    folder: Path, program: Box, compiled_whole: Compiled, source: DictSource
) -> None:
    again = write_program(compiled_whole, source, folder / "again.nvfp4")
    assert again == program.id
    ids = {export_box(program, CPU, folder / f"{n}.llvq")[0] for n in ("one", "two")}
    assert len(ids) == 1


def test_every_weight_of_the_box_is_in_its_plan(program: Box) -> None:
    made = set()
    for target, record in program.manifest["weights"].items():
        suffixes = (".codes", ".scales", ".global_scale") if record["op"] == "quantize" else ("",)
        made |= {target + suffix for suffix in suffixes}
    assert set(program.tensors()) == made


def test_a_program_is_not_a_box(program: Box) -> None:
    with pytest.raises(ArtifactError) as caught:
        load(program.path)
    assert "llvq export" in str(caught.value)


def test_nan_in_a_weight_leaves_nothing_behind(
    tmp_path: Path, compiled_whole: Compiled, source: DictSource
) -> None:
    tensors = {name: source.read(name).clone() for name in source.names()}
    tensors["dit.blocks.1.ffn.2.weight"][3, 5] = float("nan")
    with pytest.raises(FormatError, match=r"dit\.blocks\.1\.ffn\.2\.weight"):
        write_program(compiled_whole, DictSource(tensors), tmp_path / "m.nvfp4")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path,
    compiled_whole: Compiled,
    source: DictSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llvq.weights_writer._write_at", full)
    with pytest.raises(OutputError, match=r"\[output\]|space") as caught:
        write_program(compiled_whole, source, tmp_path / "m.nvfp4")
    assert "No space left" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_program_is_kept_unless_told(
    program: Box, compiled_whole: Compiled, source: DictSource
) -> None:
    with pytest.raises(OutputError):
        write_program(compiled_whole, source, program.path)
    assert open_checked(program.path).id == program.id


def test_a_target_without_an_op_is_refused(tmp_path: Path, program: Box) -> None:
    rest = {op: impl for op, impl in CPU.implementations.items() if op != "paged_attention"}
    poor = replace(CPU, name="poor", implementations=rest)
    with pytest.raises(TargetError, match=r"cannot run llvq\.paged_attention"):
        export_box(program, poor, tmp_path / "m.llvq")
    assert isinstance(poor, Target) and list(tmp_path.iterdir()) == []


def test_the_manifest_says_what_was_known_of_each_source() -> None:
    """A static scale is one by its name and factor; what is not known is left out."""
    known = LayerFacts(input_scale="q.input_scale", lora_down="d", lora_up="u", rank=4, packed=True)
    record = WeightRecord(
        "q_k", "quantize", ("q", "k"), block_rule="max", facts=(known, LayerFacts())
    )
    assert box_module._record(record) == {
        "op": "quantize",
        "sources": ["q", "k"],
        "block_rule": "max",
        "facts": [
            {"input_scale": "q.input_scale", "lora_down": "d", "lora_up": "u", "rank": 4,
             "packed": True},
            {},
        ],
    }  # fmt: skip
    scale = WeightRecord("s", "scale", ("q.input_scale",), factor=1.75)
    assert box_module._record(scale) == {
        "op": "scale",
        "sources": ["q.input_scale"],
        "factor": 1.75,
    }
    assert box_module._record(WeightRecord("c", "copy", ("c",))) == {"op": "copy", "sources": ["c"]}
