"""The cache of embeddings on disk: what comes out is what went in, or an error says why not."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llvq.compiler import Compiled
from llvq.errors import OutputError, SessionError
from llvq.runtime.executable import RunFacts
from llvq.runtime.prompt_cache import DamagedEntry, PromptCache
from llvq.runtime.prompts import PromptTokens

ENCODER = "e" * 64


@pytest.fixture
def facts(compiled_nvfp4: Compiled) -> RunFacts:
    """5 tokens of 32 numbers in bf16."""
    return compiled_nvfp4.facts


@pytest.fixture
def cache(tmp_path: Path, facts: RunFacts) -> PromptCache:
    return PromptCache(tmp_path / "a" / "cache", ENCODER, facts)


def tokens(*ids: int) -> PromptTokens:
    padded = [*ids, *[0] * (5 - len(ids))]
    mask = [1] * len(ids) + [0] * (5 - len(ids))
    return PromptTokens(torch.tensor([padded]), torch.tensor([mask]), truncated=False)


def embedding(rows: int) -> torch.Tensor:
    embeds = torch.zeros(1, 5, 32, dtype=torch.bfloat16)
    embeds[0, :rows] = torch.randn(rows, 32, generator=torch.Generator().manual_seed(rows))
    return embeds


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.just(bytes(64)), st.binary(min_size=64, max_size=64)), max_size=5),
    st.sampled_from(["bfloat16", "float16", "float32"]),
)
def test_any_bytes_come_back(
    tmp_path: Path, facts: RunFacts, rows: list[bytes], dtype: str
) -> None:
    """NaN, -0.0 and rows of zeros in between, too."""
    kind: torch.dtype = getattr(torch, dtype)
    width = 64 // kind.itemsize
    data = bytearray(b"".join(rows).ljust(5 * 64, b"\0"))
    embeds = torch.frombuffer(data, dtype=kind).reshape(1, 5, width)
    cache = PromptCache(tmp_path, ENCODER, replace(facts, dtype=dtype, text_dim=width))
    cache.put(tokens(1, 2), embeds)
    found = cache.get(tokens(1, 2))
    assert found is not None and (found.dtype, found.shape) == (kind, embeds.shape)
    assert found.contiguous().view(torch.uint8).numpy().tobytes() == bytes(data)


def test_only_rows_before_the_padding_are_stored(cache: PromptCache) -> None:
    assert cache.get(tokens(7, 8)) is None and not cache.folder.exists()
    cache.put(tokens(7, 8), embedding(2))
    (file,) = cache.folder.iterdir()
    assert file == cache.path_of(tokens(7, 8))
    assert torch.equal(load_file(file)["prompt_embeds"], embedding(2)[0, :2])


def test_a_key_is_an_encoder_and_what_it_reads(cache: PromptCache, facts: RunFacts) -> None:
    other = PromptCache(cache.folder, "f" * 64, facts)
    paths = {c.path_of(tokens(*ids)) for c in (cache, other) for ids in ((1,), (1, 0), (1, 2))}
    assert len(paths) == 6
    cut = replace(tokens(1, 2), truncated=True)
    assert cache.path_of(cut) == cache.path_of(tokens(1, 2))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def saved(tensor: torch.Tensor, name: str = "prompt_embeds") -> Callable[[Path], object]:
    digest = torch.zeros(32, dtype=torch.uint8)
    return lambda path: save_file({name: tensor, "sha256": digest}, path)


def of_another(path: Path) -> None:
    path.write_bytes(next(p for p in path.parent.iterdir() if p != path).read_bytes())


BF16 = torch.bfloat16
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, "its sha256 is not"),
    "cut": (cut, "incomplete metadata"),
    "empty": (lambda path: path.write_bytes(b""), "header"),
    "garbage": (lambda path: path.write_bytes(b"\xff" * 64), "header"),
    "large": (lambda path: path.write_bytes(bytes(10_000)), "larger than 4416 bytes"),
    "name": (saved(torch.zeros(2, 32, dtype=BF16), "embeds"), "does not hold prompt_embeds"),
    "alone": (lambda p: save_file({"prompt_embeds": torch.zeros(2, 32)}, p), "and sha256"),
    "rows": (saved(torch.zeros(6, 32, dtype=BF16)), "[6, 32], not BF16 [up to 5, 32]"),
    "columns": (saved(torch.zeros(2, 31, dtype=BF16)), "[2, 31]"),
    "rank": (saved(torch.zeros(1, 2, 32, dtype=BF16)), "[1, 2, 32]"),
    "dtype": (saved(torch.zeros(2, 32)), "it is F32"),
    "forged": (saved(torch.zeros(2, 32, dtype=BF16)), "its sha256 is not"),
    "of another": (of_another, "its sha256 is not"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_and_can_be_replaced(cache: PromptCache, name: str) -> None:
    for ids in ((7, 8), (9,)):
        cache.put(tokens(*ids), embedding(len(ids)))
    path = cache.path_of(tokens(7, 8))
    damage, said = DAMAGE[name]
    damage(path)
    with pytest.raises(DamagedEntry) as caught:
        cache.get(tokens(7, 8))
    text = str(caught.value)
    assert said in text and str(path) in text and "llvq encode" in text and text.count("\n") == 3
    cache.put(tokens(7, 8), embedding(2))
    assert torch.equal(cache.get(tokens(7, 8)), embedding(2))  # type: ignore[arg-type]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(min_value=0), st.integers(1, 255))
def test_no_changed_byte_gives_another_embedding(cache: PromptCache, at: int, change: int) -> None:
    cache.put(tokens(7, 8), embedding(2))
    path = cache.path_of(tokens(7, 8))
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= change
    path.write_bytes(data)
    with suppress(DamagedEntry):
        assert torch.equal(cache.get(tokens(7, 8)), embedding(2))  # type: ignore[arg-type]


def test_a_folder_that_is_none(tmp_path: Path, facts: RunFacts) -> None:
    (tmp_path / "file").write_text("mine")
    cache = PromptCache(tmp_path / "file", ENCODER, facts)
    with pytest.raises(SessionError, match="cannot be read"):
        cache.get(tokens(1))
    for write in (cache.check_writable, lambda: cache.put(tokens(1), embedding(1))):
        with pytest.raises(OutputError, match="cannot be written") as caught:
            write()
        assert str(tmp_path / "file") in str(caught.value) and "fix" in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_entry_that_was_there(
    cache: PromptCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(tokens(1), embedding(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError) as caught:
        cache.put(tokens(1), embedding(2))
    assert "No space left" in str(caught.value)
    assert len(list(cache.folder.iterdir())) == 1
    assert torch.equal(cache.get(tokens(1)), embedding(1))  # type: ignore[arg-type]


WRITER = """
import pickle, sys
from llvq.runtime.prompt_cache import PromptCache
folder, facts, tokens, embeds = pickle.load(sys.stdin.buffer)
cache = PromptCache(folder, "e" * 64, facts)
print("ready", flush=True)
for _ in range(300):
    cache.put(tokens, embeds)
"""


def test_writers_of_one_entry_never_show_half_of_it(
    cache: PromptCache, facts: RunFacts, tmp_path: Path
) -> None:
    """Two processes write one entry with different bytes, while this one reads it."""
    writers = []
    for rows in (3, 5):
        data = pickle.dumps((cache.folder, facts, tokens(1, 2), embedding(rows)))
        (tmp_path / f"{rows}.pickle").write_bytes(data)
        with open(tmp_path / f"{rows}.pickle", "rb") as given:
            command = [sys.executable, "-c", WRITER]
            writers.append(subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE))
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    seen = set()
    while any(writer.poll() is None for writer in writers):
        found = cache.get(tokens(1, 2))
        if found is not None:
            rows = int(found[0].any(dim=1).sum())
            assert torch.equal(found, embedding(rows))
            seen.add(rows)
    assert [writer.wait() for writer in writers] == [0, 0] and seen
    assert len(list(cache.folder.iterdir())) == 1
