"""A box without its text encoder: what it lacks, what it keeps, and what cannot be left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llvq.artifact import Box
from llvq.backends.base import CPU
from llvq.box import export_box, write_program
from llvq.compiler import Compiled
from llvq.errors import ArtifactError, RecipeError
from llvq.models.config import ModelConfig
from llvq.parts import all_parts, without_text_encoder
from llvq.plan import plan_box
from llvq.runtime.embedder import encoder_identity
from llvq.runtime.load import load, open_checked
from llvq.sources import DictSource

Write = Callable[..., Box]


@pytest.fixture
def write(
    tmp_path: Path,
    compiled_whole: Compiled,
    whole_config: ModelConfig,
    make_whole_weights: Callable[[ModelConfig], DictSource],
) -> Write:
    """A program with a tokenizer, or whatever stands for one."""

    def write(*, tokenizer: bool = True, compiled: Compiled = compiled_whole) -> Box:
        (tmp_path / "tokenizer.json").write_text("{}")
        file = tmp_path / "tokenizer.json" if tokenizer else None
        path = tmp_path / "m.nvfp4"
        write_program(compiled, make_whole_weights(whole_config), path, tokenizer=file)
        return open_checked(path, kinds=("program",))

    return write


def test_a_box_lacks_the_encoder_and_nothing_else(write: Write, tmp_path: Path) -> None:
    program = write()
    export_box(program, CPU, tmp_path / "whole.llvq")
    _, checks = export_box(program, CPU, tmp_path / "bare.llvq", text_encoder=False)
    whole, bare = (open_checked(tmp_path / f"{name}.llvq") for name in ("whole", "bare"))
    assert whole.manifest["left_out"] == {}
    assert bare.manifest["left_out"] == {"encode_text": encoder_identity(whole)}
    assert encoder_identity(bare) == encoder_identity(whole)
    assert set(whole.manifest["stages"]) - set(bare.manifest["stages"]) == {"encode_text"}
    assert "encode_text" not in checks.vectors
    missing = set(whole.tensors()) - set(bare.tensors())
    assert missing and all(name.startswith("text.") for name in missing)
    assert set(whole.manifest["weights"]) - set(bare.manifest["weights"]) == missing
    assert "tokenizer/tokenizer.json" in bare.manifest["files"]
    used = {op for stage in whole.manifest["stages"] for op in ops(whole, stage)}
    kept = {op for stage in bare.manifest["stages"] for op in ops(bare, stage)}
    assert set(bare.manifest["ops"]) == kept < used == set(whole.manifest["ops"])
    assert set(load(bare.path).stages) == set(bare.manifest["stages"])


def ops(box: Box, stage: str) -> set[str]:
    nodes = box.graph(stage)["nodes"]
    called = {node["target"] for node in nodes if node["op"] == "call_function"}
    return {name for name in called if not name.startswith("operator.")}


def test_a_plan_has_no_encoder_then(write: Write, tmp_path: Path) -> None:
    program = write()
    export_box(program, CPU, tmp_path / "bare.llvq", text_encoder=False)
    whole = plan_box(program, target="cpu")
    bare = plan_box(open_checked(tmp_path / "bare.llvq"), target="cpu")
    assert whole.encoding > 0 == bare.encoding
    assert bare.total == bare.generating == whole.generating
    assert not [name for name in bare.weights if name.startswith("text encoder")]


def test_all_parts_are_all_files(write: Write) -> None:
    program = write()
    parts = all_parts(program)
    graphs = {name for name in program.manifest["files"] if name.startswith("graphs/")}
    assert {*parts.files, *graphs} == set(program.manifest["files"])


def test_no_encoder_cannot_be_left_out(
    write: Write, tmp_path: Path, compiled_nvfp4: Compiled
) -> None:
    with pytest.raises(RecipeError, match="no text encoder to leave out"):
        export_box(write(compiled=compiled_nvfp4), CPU, tmp_path / "m.llvq", text_encoder=False)
    assert not (tmp_path / "m.llvq").exists()


def test_without_a_tokenizer_nothing_could_be_found(write: Write) -> None:
    with pytest.raises(RecipeError, match="without a tokenizer") as caught:
        without_text_encoder(write(tokenizer=False))
    assert "--tokenizer" in str(caught.value)


def test_weights_that_share_a_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llvq.weights_writer._part", lambda record: "")
    program = write()
    with pytest.raises(ArtifactError, match="holds weights of the text encoder and others"):
        without_text_encoder(program)
