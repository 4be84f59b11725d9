"""The whole system on the tiny model: both sides are measured, and what is cut off is printed."""

from __future__ import annotations

import json
import signal
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import end_to_end, random_box
from benchmarks.end_to_end_plain import PlainDecoder, PlainVideo, first_latents
from benchmarks.random_weights import device_weights, weight_specs
from benchmarks.watched_video import figures, flatness, new_watched
from llvq.backends.base import CPU
from llvq.graphs.weight_groups import Limits
from llvq.models.config import ModelConfig
from llvq.runtime.session import Part, Session
from llvq.runtime.timeline import spans_of

DEVICE = torch.device("cpu")
WORDS = ["--steps", "1", "--chunks", "6", "--plain-chunks", "2"]


@pytest.fixture(scope="module")
def path(whole_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("random") / "small.llvq"
    random_box.write_random_box(target, whole_config, CPU)
    return target


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, whole_config: ModelConfig) -> None:
    monkeypatch.setattr(end_to_end, "model_sizes", lambda _: whole_config)


@pytest.mark.usefixtures("small")
def test_both_sides_are_in_the_files(path: Path, tmp_path: Path) -> None:
    assert end_to_end.main([str(path), *WORDS, "--out", str(tmp_path)]) == 0
    text, found = (tmp_path / "end_to_end.txt").read_text(), _document(tmp_path)
    for words in ("$ python -m benchmarks.end_to_end", "steady, over PyTorch", "llvq plan",
                  "PyTorch bf16, 1 steps", "6 of 6", "peak memory, GB"):  # fmt: skip
        assert words in text
    ours, plain = found["videos"]
    assert ours["name"] == "llvq" and plain["name"] == "PyTorch bf16"
    assert ours["frames"] == plain["frames"] == [5, *[8] * 5]
    assert found["versions"]["torch"] == torch.__version__


@pytest.mark.usefixtures("small")
def test_a_trace_has_all_lanes_of_one_video(path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    words = [str(path), "--steps", "1", "2", "--chunks", "3", "--plain-chunks", "0"]
    assert end_to_end.main([*words, "--trace", str(trace)]) == 0
    spans = spans_of(json.loads(trace.read_text(encoding="utf-8")))
    assert {span.lane for span in spans} == {"denoise", "decode", "copy to host", "taken"}
    assert [span.chunk for span in spans if span.name == "denoise"] == [0, 1, 2]


@pytest.mark.usefixtures("small")
def test_low_memory_is_measured_and_planned(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Limits(sizes=(2**13,), smallest=256)
    monkeypatch.setattr("llvq.runtime.load.LIMITS", small)
    monkeypatch.setattr("llvq.plan.Limits", lambda: small)
    words = [str(path), "--steps", "1", "--chunks", "5", "--plain-chunks", "0", "--low-memory"]
    assert end_to_end.main([*words, "--out", str(tmp_path)]) == 0
    found, text = _document(tmp_path), (tmp_path / "end_to_end.txt").read_text()
    assert found["plan"]["streaming"]["host"] == found["streamed"]["host"] > 0
    assert "GB of weights on the host" in text and "room for others" in text


@pytest.mark.usefixtures("small")
def test_what_was_there_when_it_was_cut_off_is_told(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutOff(Session):
        def parts(self) -> Generator[Part, None, None]:
            for part in super().parts():
                if part.index == 3:
                    signal.raise_signal(signal.SIGINT)
                yield part

    monkeypatch.setattr(end_to_end, "Session", CutOff)
    assert end_to_end.main([str(path), *WORDS, "--out", str(tmp_path)]) == 1
    (video,) = _document(tmp_path)["videos"]
    assert len(video["ends"]) == 3 and "3 of 6" in (tmp_path / "end_to_end.txt").read_text()


def _document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "end_to_end.json").read_text())


@pytest.mark.usefixtures("small")
def test_a_box_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_to_end.main([str(tmp_path / "nowhere.llvq")]) == 2
    assert "nowhere.llvq" in capsys.readouterr().err


def test_frames_of_the_plain_decoder_do_not_depend_on_latents_per_call(
    whole_config: ModelConfig,
) -> None:
    weights = device_weights(weight_specs(whole_config, torch.float32), DEVICE, 0)
    latent, made = first_latents(whole_config, DEVICE, 1).float(), []
    for calls in (1, whole_config.stream.frames_per_chunk):
        decoder = PlainDecoder(whole_config, weights, DEVICE, calls)
        made.append(torch.cat([decoder.frames(latent), decoder.frames(latent)]).int())
    assert made[0].shape[0] == 5 + 8 and made[0].float().std() > 1
    assert (made[0] - made[1]).abs().max() <= 1


def test_the_plain_window_keeps_its_sink(whole_config: ModelConfig) -> None:
    weights = device_weights(weight_specs(whole_config, torch.bfloat16), DEVICE, 0)
    video, stream = PlainVideo(whole_config, weights, DEVICE, calls=1, seed=0), whole_config.stream
    tokens, lengths, sinks = whole_config.chunk_tokens, [], []
    for _ in video.chunks(6, 1):
        lengths.append(video.keys[0].shape[1] // tokens)
        sinks.append(video.keys[0][:, : tokens * stream.sink_chunks])
    assert lengths == [1, 2, 3, 3, 3, 3] and stream.window_chunks == 4
    assert all(torch.equal(sinks[0], sink) for sink in sinks)


def test_figures_are_those_of_a_full_window() -> None:
    video = new_watched("llvq", 2, 2, 5, [DEVICE])
    video.ends, video.frames = [1.0, 2.0, 2.5, 3.0, 4.0], [29, 32, 32, 32, 32]
    found = figures(video)
    assert found["first_frame"] == 1.0 and found["fps"] == 157 / 4
    assert found["fps_steady"] == pytest.approx(96 / 2)
    assert found["p50"] == 0.5 and found["p99"] == 1.0 and found["time"] is None


def test_a_video_that_has_not_begun_has_no_figures() -> None:
    found = figures(new_watched("llvq", 2, 2, 5, [DEVICE]))
    assert found["fps"] is found["fps_steady"] is found["p50"] is found["first_frame"] is None


def test_memory_is_noted_with_every_chunk() -> None:
    video = new_watched("llvq", 1, 1, 3, [DEVICE])
    video.watch([SimpleNamespace(frames=torch.zeros(3))] * 3, 0.0, [DEVICE])
    (memory,) = video.memory
    assert len(memory.used) == 3 and min(memory.used) > 50e6 and memory.allocated == []


def test_slopes_are_shares_of_the_mean_per_value() -> None:
    assert flatness([1.0] * 3) is None
    assert flatness([5.0] * 8) == {"first": 5.0, "last": 5.0, "slope": 0.0}
    rising = flatness([float(value) for value in range(1, 10)])
    assert rising == {"first": 1.5, "last": 8.5, "slope": pytest.approx(0.2)}
