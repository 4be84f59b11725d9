"""Embeddings of a whole box: what identifies its encoder, and when the encoder is loaded."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from llvq.artifact import Box
from llvq.errors import OutputError, SessionError
from llvq.runtime import embedder as module
from llvq.runtime.embedder import ENCODER, Embedder, encoder_identity
from llvq.runtime.load import load, open_checked
from llvq.runtime.prompt_cache import DamagedEntry
from llvq.runtime.prompts import PromptTokens

if TYPE_CHECKING:
    from .conftest import Forger


def tokens(*ids: int) -> PromptTokens:
    mask = [1] * len(ids) + [0] * (5 - len(ids))
    return PromptTokens(torch.tensor([[*ids, *[0] * (5 - len(ids))]]), torch.tensor([mask]), False)


TWO = {"a": tokens(3, 4, 1), "b": tokens(5, 1)}


@pytest.fixture
def box(honest_box: Path) -> Box:
    return open_checked(honest_box)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was loaded, each time something was."""
    asked: list[object] = []
    build = module.executable

    def noted(box: Box, device: str, *, stages: tuple[str, ...], low_memory: bool) -> object:
        asked.append(stages)
        return build(box, device, stages=stages, low_memory=low_memory)

    monkeypatch.setattr(module, "executable", noted)
    return asked


def test_a_hit_is_a_miss_bit_for_bit(box: Box, tmp_path: Path, loads: list[object]) -> None:
    plain = Embedder(box).embed(TWO)
    missed = Embedder(box, tmp_path / "c")
    first = missed.embed(TWO)
    assert missed.encoded == 2 and loads == [(ENCODER,)] * 2
    hit = Embedder(box, tmp_path / "c")
    second = hit.embed(TWO)
    assert hit.encoded == 0 and len(loads) == 2
    encode = load(box.path).stage(ENCODER)
    for prompt, item in TWO.items():
        stage = encode({"ids": item.ids, "mask": item.mask})["prompt_embeds"]
        for found in (plain[prompt], first[prompt], second[prompt]):
            assert found.dtype == stage.dtype
            assert torch.equal(found.view(torch.int16), stage.view(torch.int16))


def test_only_what_is_new_is_encoded(box: Box, tmp_path: Path) -> None:
    Embedder(box, tmp_path).embed({"a": TWO["a"]})
    embedder = Embedder(box, tmp_path)
    embedder.embed(TWO)
    assert embedder.encoded == 1


def test_the_encoder_is_loaded_once_and_given_back(box: Box, loads: list[object]) -> None:
    embedder = Embedder(box)
    threads = [threading.Thread(target=embedder.embed, args=(TWO,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1 and embedder.encoded == 8
    assert embedder._encoder is not None
    weights = [weakref.ref(t) for t in embedder._encoder.graph.buffers()]
    assert weights
    embedder.release()
    assert [ref() for ref in weights] == [None] * len(weights)
    embedder.embed(TWO)
    assert len(loads) == 2


def test_an_identity_is_that_of_graph_weights_and_tokenizer(forger: Forger) -> None:
    def identity() -> str | None:
        return encoder_identity(open_checked(forger.path))

    found = [identity()]
    forger.manifest(lambda m: m.update(target="cpu", numerics="other"))
    forger.graph(ENCODER, lambda nodes: [n.update(source="x.py:1", module="x") for n in nodes])
    forger.graph(ENCODER, lambda nodes: [n.update(llvq=None) for n in nodes])
    forger.graph("denoise", lambda nodes: nodes[0].update(source="x.py:1"))
    assert identity() == found[0]
    (forger.path / "tokenizer").mkdir()
    for content in (b"{}", b"[]"):
        forger.file("tokenizer/tokenizer.json", content)
        found.append(identity())
    name = open_checked(forger.path).weight_files(["text.shared.weight"])[0]
    data = (forger.path / name).read_bytes()
    (forger.path / name).unlink()
    forger.file(name, data[:-1] + bytes([data[-1] ^ 1]))
    found.append(identity())
    forger.graph(ENCODER, scale_the_norm)
    found.append(identity())
    assert len(set(found)) == 5 and None not in found


def scale_the_norm(nodes: list[dict[str, object]]) -> None:
    """Another epsilon in the first norm that has one as a number."""
    for node in nodes:
        args = node["args"]
        assert isinstance(args, list)
        for index, value in enumerate(args):
            if isinstance(value, float):
                args[index] = value * 2
                return
    pytest.fail("no number to change")


def test_programs_and_boxes_have_one_identity(box: Box) -> None:
    program = open_checked(box.path.with_name("m.nvfp4"))
    assert encoder_identity(program) == encoder_identity(box)


def damage(folder: Path, embedder: Embedder) -> None:
    assert embedder._cache is not None
    path = embedder._cache.path_of(TWO["a"])
    assert path.parent == folder
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_entry_is_encoded_again_and_told(box: Box, tmp_path: Path) -> None:
    first = Embedder(box, tmp_path)
    wanted = first.embed(TWO)
    damage(tmp_path, first)
    second = Embedder(box, tmp_path)
    assert torch.equal(second.embed(TWO)["a"], wanted["a"])
    assert second.encoded == 1 and [type(e) for e in second.damaged] == [DamagedEntry]
    third = Embedder(box, tmp_path)
    assert torch.equal(third.embed(TWO)["a"], wanted["a"]) and third.encoded == 0


def drop_encoder(forger: Forger, box: Box, left_out: bool) -> Box:
    """The box as if it had no encoder; its files stay, for nothing is loaded here."""

    def change(manifest: dict[str, object]) -> None:
        for field in ("stages", "contract"):
            del manifest[field][ENCODER]  # type: ignore[attr-defined]
        if left_out:
            manifest["left_out"] = {ENCODER: encoder_identity(box)}

    forger.manifest(change)
    return open_checked(forger.path)


def test_without_an_encoder_the_cache_is_all_there_is(
    forger: Forger, box: Box, tmp_path: Path
) -> None:
    full = Embedder(box, tmp_path / "c")
    wanted = full.embed({"a": TWO["a"]})
    bare = drop_encoder(forger, box, left_out=True)
    embedder = Embedder(bare, tmp_path / "c")
    assert torch.equal(embedder.embed({"a": TWO["a"]})["a"], wanted["a"])
    with pytest.raises(SessionError) as missing:
        embedder.embed(TWO)
    assert "no embedding of 'b' is in the prompt cache" in str(missing.value)
    assert f"llvq encode BOX --prompt b --prompt-cache {tmp_path / 'c'}" in str(missing.value)
    assert str(embedder.identity) in str(missing.value)
    damage(tmp_path / "c", full)
    with pytest.raises(DamagedEntry):
        embedder.embed({"a": TWO["a"]})
    with pytest.raises(SessionError, match="no prompt cache was given") as caught:
        Embedder(bare).embed(TWO)
    assert "add --prompt-cache DIR" in str(caught.value)


def test_a_model_that_never_had_an_encoder(forger: Forger, box: Box, tmp_path: Path) -> None:
    embedder = Embedder(drop_encoder(forger, box, left_out=False), tmp_path)
    assert embedder.identity is None
    with pytest.raises(SessionError, match="no text encoder") as caught:
        embedder.embed(TWO)
    assert "--embeds" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_refused_before_loading(
    box: Box, tmp_path: Path, loads: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written"):
        Embedder(box, tmp_path / "c").embed(TWO)
    assert loads == []
