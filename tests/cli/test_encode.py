"""`llvq encode`, and what it is for: a box without its text encoder, from a shell to latents."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from llvq import canonical_json
from llvq.artifact.manifest import seal
from llvq.errors import SessionError
from llvq.runtime import embedder, generate
from llvq.runtime.executable import Executable
from llvq.runtime.generate import Request, open_session, prepare_prompts
from tests.cli.conftest import Typed

Invoke = Callable[..., Result]
SHOTS = ("--prompt", "a kite", "--prompt", "a boat", "--seconds", "0.5", "--steps", "1")


@pytest.fixture
def bare(invoke: Invoke, program: Typed, tmp_path: Path) -> Path:
    """A box without its text encoder."""
    result = invoke("export", program.path, "--no-text-encoder", "-o", "bare.llvq", "--json")
    assert result.exit_code == 0, result.stderr
    assert "encode_text" not in json.loads(result.stdout)["checks"]
    return tmp_path / "bare.llvq"


def latents(invoke: Invoke, box: Path, *words: str) -> torch.Tensor:
    out = ("-o", "out.safetensors", "--force", "--latents-only")
    result = invoke("run", box, *SHOTS, *words, *out)
    assert result.exit_code == 0, result.stderr
    return load_file("out.safetensors")["latents"]


def test_a_box_without_encoder_makes_the_same_video(
    invoke: Invoke, box: Typed, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = invoke("run", bare, *SHOTS, "--prompt-cache", "cache")
    assert refused.exit_code == 2
    assert "no embedding of 'a kite' and 1 more" in refused.stderr
    words = ("--prompt", "a kite", "--prompt", "a boat", "--prompt-cache", "cache")
    shown = invoke("encode", box.path, *words, "--json")
    counts = json.loads(shown.stdout)
    assert (counts["prompts"], counts["entries"], counts["encoded"]) == (2, 4, 4)
    assert counts["encoder"] in refused.stderr
    found = latents(invoke, bare, "--prompt-cache", "cache")
    assert torch.equal(found, latents(invoke, box.path))
    again = invoke("encode", box.path, *words)
    assert "0 encoded, 4 were there" in again.stdout
    assert counts["encoder"] in again.stdout
    monkeypatch.setattr(embedder, "executable", None)  # the encoder of the full box is not loaded
    assert torch.equal(found, latents(invoke, box.path, "--prompt-cache", "cache"))


def test_a_box_without_encoder_says_so(invoke: Invoke, bare: Path) -> None:
    shown = invoke("inspect", bare)
    assert "left out" in shown.stdout and "encode_text " in shown.stdout
    assert invoke("verify", bare).exit_code == 0
    plain = invoke("run", bare, *SHOTS)
    assert plain.exit_code == 2 and "--prompt-cache DIR" in plain.stderr
    encoded = invoke("encode", bare, "--prompt", "a kite", "--prompt-cache", "cache")
    assert encoded.exit_code == 2 and "--no-text-encoder" in encoded.stderr
    planned = json.loads(invoke("plan", bare, "--json").stdout)
    assert planned["encoding"] == 0 and planned["total"] == planned["generating"]


def test_a_run_fills_the_cache_and_mends_it(invoke: Invoke, box: Typed, tmp_path: Path) -> None:
    first = latents(invoke, box.path, "--prompt-cache", "cache")
    entries = sorted((tmp_path / "cache").iterdir())
    assert len(entries) == 2  # one chunk a shot: the second is a cut alone
    entries[0].write_bytes(b"")
    out = ("-o", "out.safetensors", "--force", "--latents-only", "--prompt-cache", "cache")
    result = invoke("run", box.path, *SHOTS, *out)
    assert "is damaged, and was encoded again" in result.stderr
    assert entries[0].name[:20] in result.stderr
    assert torch.equal(load_file("out.safetensors")["latents"], first)
    assert sorted((tmp_path / "cache").iterdir()) == entries and entries[0].stat().st_size


def test_a_prompt_is_changed_while_the_video_runs(bare: Path, box: Typed, tmp_path: Path) -> None:
    """The same change on a box with its encoder, which fills the cache, and on one without."""
    made = []
    for path in (box.path, bare):
        request = Request(("a kite",), 0.9, steps=1, latents_only=True, prompt_cache=tmp_path / "c")
        opened = open_session(path, request)
        opened.session.decode_depth = 0  # no chunk is begun before the last was given out
        chunks = []
        for chunk in opened.session:
            chunks.append(chunk.latents)
            if chunk.index == 0:
                (boat,) = prepare_prompts(opened.embedder, ["a boat"], 1)
                opened.session.set_prompt(boat)
        made.append(torch.cat(chunks))
    assert len(made[0]) == len(chunks) > 2 and torch.equal(*made)
    with pytest.raises(SessionError, match="no embedding of 'a dog'"):
        prepare_prompts(opened.embedder, ["a dog"], 1)


def test_encoder_and_denoiser_are_never_in_memory_together(
    box: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[weakref.ref[torch.Tensor]] = []
    rest: list[set[str]] = []
    build = embedder.executable

    def encoder(*args: object, **options: object) -> Executable:
        model = build(*args, **options)  # type: ignore[arg-type]
        encoders.extend(map(weakref.ref, model.stage("encode_text").graph.buffers()))
        return model

    def others(*args: object, stages: set[str], **options: object) -> Executable:
        rest.append(stages)
        assert encoders and {ref() for ref in encoders} == {None}
        return build(*args, stages=stages, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(embedder, "executable", encoder)
    monkeypatch.setattr(generate, "executable", others)
    opened = open_session(box.path, Request(("a kite",), 0.1, prompt_cache=tmp_path / "c"))
    assert opened.embedder.encoded == 1 and len(rest) == 1 and "encode_text" not in rest[0]


def test_prompts_come_from_a_file(invoke: Invoke, box: Typed, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa kite\r\n\r\na caf\xc3\xa9\na kite\n")
    words = ("--prompts", "p.txt", "--prompt", "a " * 60, "--prompt-cache", "c", "--json")
    result = invoke("encode", box.path, *words)
    assert json.loads(result.stdout)["prompts"] == 3
    assert "longer than 48 tokens" in result.stderr
    assert len(list((tmp_path / "c").iterdir())) == json.loads(result.stdout)["encoded"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no prompt was given"),
        (("--prompt", " "), "the prompt is empty"),
        (("--prompts", "none.txt"), "none.txt cannot be read"),
        (("--prompts", "bad.txt"), "UTF-8"),
        (("--prompts", "empty.txt"), "no prompt was given"),
    ],
)
def test_what_cannot_be_encoded(
    invoke: Invoke, box: Typed, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.txt").write_bytes(b"\n \n")
    result = invoke("encode", box.path, *words, "--prompt-cache", "c")
    assert result.exit_code == 2 and said in result.stderr and "fix" in result.stderr
    assert not (tmp_path / "c").exists()


def test_a_cache_of_another_encoder_has_nothing(
    invoke: Invoke, box: Typed, bare: Path, tmp_path: Path
) -> None:
    invoke("encode", box.path, "--prompt", "a kite", "--prompt-cache", "cache")
    other = tmp_path / "other.llvq"
    shutil.copytree(bare, other)
    manifest = json.loads((other / "manifest.json").read_bytes())
    manifest["left_out"]["encode_text"] = "0" * 64
    data = canonical_json.dumps(manifest)
    (other / "manifest.json").write_bytes(data)
    (other / "manifest.sha256").write_bytes(seal(data))
    result = invoke("run", other, "--prompt", "a kite", "--prompt-cache", "cache")
    assert result.exit_code == 2 and "0" * 64 in result.stderr


def test_embeddings_are_not_looked_up(invoke: Invoke, box: Typed) -> None:
    result = invoke("run", box.path, "--embeds", "io.safetensors", "--prompt-cache", "c")
    assert result.exit_code == 2 and "together with --prompt-cache" in result.stderr
