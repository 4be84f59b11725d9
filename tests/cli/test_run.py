"""`llvq run`: frames, latents, interrupts, and every request that cannot be met."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import Result

from llvq.errors import OutputError
from llvq.graphs.weight_groups import Limits
from llvq.runtime import generate
from llvq.runtime.executable import DECODING, Executable
from llvq.runtime.load import executable
from llvq.runtime.timeline import spans_of
from llvq.runtime.video import VideoWriter
from tests.cli.conftest import Typed, type_command

Invoke = Callable[..., Result]
FRAMES = 13  # two chunks of two latents: 4 * 4 - 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise and embeddings of three chunks."""
    random = torch.Generator().manual_seed(0)
    tensors = {
        "noise": torch.randn(1, 6, 48, 4, 6, generator=random),
        "prompt_embeds": torch.randn(3, 48, 128, generator=random),
    }
    path = tmp_path_factory.mktemp("inputs") / "io.safetensors"
    save_file(tensors, path)
    return path


def test_two_prompts_become_a_video(box: Typed, tmp_path: Path) -> None:
    prompts = ("--prompt", "a red kite", "--prompt", "a boat " * 20)
    done = type_command("run", str(box.path), *prompts, "--seconds", "0.5", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["frames"] == FRAMES and document["fps"] > 0
    assert "denoise + decode" in document["timed"]
    assert "longer than 48 tokens" in done.stderr
    with av.open(str(tmp_path / "model.mp4")) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == FRAMES and (frames[0].height, frames[0].width) == (64, 96)
    assert os.listdir(tmp_path) == ["model.mp4"]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_no_half_file(box: Typed, tmp_path: Path) -> None:
    """But the trace that was asked for."""
    words = ("run", str(box.path), "--prompt", "a red kite", "--seconds", "600")
    command = [sys.executable, "-m", "llvq", *words, "--trace", "trace.json"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not os.listdir(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert os.listdir(tmp_path) == ["trace.json"]
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())


def test_a_trace_says_what_was_done_when(invoke: Invoke, box: Typed, tmp_path: Path) -> None:
    words = ("--prompt", "a red kite", "--seconds", "0.5", "--steps", "2", "-o", "a.mp4")
    result = invoke("run", box.path, *words, "--trace", "trace.json")
    assert result.exit_code == 0, result.stderr
    spans = spans_of(json.loads((tmp_path / "trace.json").read_text()))
    found = Counter((span.lane, span.name, span.chunk) for span in spans)
    assert {key: count for key, count in found.items() if key[2] == 1} == {
        ("denoise", "denoise", 1): 2,
        ("denoise", "refresh", 1): 1,
        ("decode", "decode", 1): 2,
        ("copy to host", "copy", 1): 3,
        ("write", "write", 1): 2,
    }
    again = invoke("run", box.path, *words, "--force", "--trace", "missing/trace.json")
    assert again.exit_code == 5 and "no folder to go to" in again.stderr


def test_a_run_that_fails_leaves_its_trace(
    invoke: Invoke, box: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full within the second chunk; of the trace itself, a note is enough then."""
    append, taken = VideoWriter.append, []

    def full(writer: VideoWriter, frames: torch.Tensor) -> None:
        taken.append(len(frames))
        if len(taken) % 4 == 0:
            raise OutputError("cannot write a.mp4", because="no space is left")
        append(writer, frames)

    monkeypatch.setattr(VideoWriter, "append", full)
    words = ("--prompt", "a red kite", "--seconds", "0.5", "--steps", "1", "-o", "a.mp4")
    result = invoke("run", box.path, *words, "--trace", "trace.json")
    assert result.exit_code == 5 and "error[output]: cannot write a.mp4" in result.stderr
    assert os.listdir(tmp_path) == ["trace.json"]
    spans = spans_of(json.loads((tmp_path / "trace.json").read_text()))
    written = [(s.chunk, s.error) for s in spans if s.lane == "write"]
    assert written == [(0, ""), (0, ""), (1, ""), (1, "OutputError")]
    assert all(s.error == "" for s in spans if s.lane != "write")

    (tmp_path / "trace.json").unlink()
    (tmp_path / f".trace.json.part-{os.getpid()}").mkdir()
    result = invoke("run", box.path, *words, "--trace", "trace.json")
    assert result.exit_code == 5 and "error[output]: cannot write a.mp4" in result.stderr
    assert "note: cannot write trace.json: Is a directory" in result.stderr


def test_latents_depend_on_noise_and_embeddings_alone(
    invoke: Invoke, box: Typed, inputs: Path, tmp_path: Path
) -> None:
    given = ("--embeds", inputs, "--noise", inputs, "--latents-only", "--steps", "1")
    for name, more in {"a": (), "b": ("--seed", "9"), "c": ("--cut", "1")}.items():
        result = invoke("run", box.path, *given, "-o", f"{name}.safetensors", *more)
        assert result.exit_code == 0, result.stderr
    a, b, c = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in "abc")
    assert a.shape == (1, 6, 48, 4, 6) and a.isfinite().all()
    assert torch.equal(a, b)
    assert torch.equal(a[:, :2], c[:, :2]) and not torch.equal(a[:, 2:], c[:, 2:])


def test_for_latents_alone_no_decoder_is_loaded(
    box: Typed, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def noted(*args: Any, **options: Any) -> Executable:
        asked.append(options["stages"])
        return executable(*args, **options)

    monkeypatch.setattr(generate, "executable", noted)
    request = generate.Request(embeds=inputs, latents_only=True, steps=1)
    generate.open_session(box.path, request)
    generate.open_session(box.path, replace(request, latents_only=False))
    without, whole = asked
    assert whole - without == set(DECODING)


def test_an_image_is_where_the_video_begins(invoke: Invoke, box: Typed, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "red.png")
    words = ("--prompt", "red", "--seconds", "0.1", "--image", "red.png", "--latents-only")
    result = invoke("run", box.path, *words, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["latents_only"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no prompt was given"),
        (("--prompt", "  "), "the prompt is empty"),
        (("--prompt", "a", "--prompt", "b", "--seconds", "0.1"), "2 prompts do not fit"),
        (("--prompt", "a", "--seconds", "-1"), "is not a length"),
        (("--prompt", "a", "--image", "io.safetensors"), "cannot be read as an image"),
        (("--prompt", "a", "--noise", "none.safetensors"), "none.safetensors cannot be read"),
        (("--prompt", "a", "--cut", "1"), "--cut was given without --embeds"),
        (("--prompt", "a", "--embeds", "io.safetensors"), "together with --prompt"),
        (("--embeds", "io.safetensors", "--cut", "3"), "no shot that begins at chunk 3"),
        (("--prompt", "a", "--decode-device", "cuda:1"), "the box is for cpu"),
        (
            ("--prompt", "a", "--decode-device", "cuda:1", "--latents-only"),
            "--decode-device was given together with --latents-only",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_loading(
    invoke: Invoke,
    box: Typed,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the box was loaded")

    monkeypatch.setattr("llvq.runtime.generate.executable", loaded)
    (tmp_path / "io.safetensors").write_bytes(inputs.read_bytes())
    result = invoke("run", box.path, *words, "-o", "video.mp4")
    assert result.exit_code == 2, result.output
    assert said in result.stderr and "fix" in result.stderr
    assert os.listdir(tmp_path) == ["io.safetensors"]


def test_a_program_does_not_run(invoke: Invoke, program: Typed) -> None:
    result = invoke("run", program.path, "--prompt", "a kite")
    assert result.exit_code == 4
    assert "llvq export" in result.stderr


def test_an_existing_video_is_kept(invoke: Invoke, box: Typed, tmp_path: Path) -> None:
    (tmp_path / "model.mp4").write_bytes(b"mine")
    result = invoke("run", box.path, "--prompt", "a kite")
    assert result.exit_code == 5
    assert (tmp_path / "model.mp4").read_bytes() == b"mine"


def test_weights_in_the_memory_of_the_host_make_the_same_latents(
    invoke: Invoke, box: Typed, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llvq.runtime.load.LIMITS", Limits(sizes=(2**16,), smallest=2**10))
    tensors = ("--embeds", str(inputs), "--noise", str(inputs), "--latents-only", "--steps", "1")
    for name, more in (("whole", ()), ("little", ("--low-memory",))):
        out = str(tmp_path / f"{name}.safetensors")
        result = invoke("run", str(box.path), *tensors, *more, "--out", out)
        assert result.exit_code == 0, result.output
        assert ("GB of weights stay in the memory of the host" in result.stderr) is bool(more)
    whole, little = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "little"))
    assert whole.keys() == little.keys()
    assert all(torch.equal(whole[name], little[name]) for name in whole)
