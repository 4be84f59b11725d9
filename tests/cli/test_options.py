"""Options that several commands share: the size of the video, and what was found on opening."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llvq.checkpoints.model import VideoModel, open_model
from llvq.cli.options import open_video_model, video_size
from llvq.errors import CheckpointError, RecipeError

Open = Callable[..., VideoModel]


@pytest.mark.parametrize("size", [(704, 1280), (1, 1)])
def test_a_size_is_both_or_none(size: tuple[int, int]) -> None:
    assert video_size(*size) == size
    assert video_size(None, None) is None


@pytest.mark.parametrize(
    ("height", "width", "fix"),
    [
        (None, 96, "add --height"),
        (64, None, "add --width"),
        (0, 96, "use --height 704 --width 1280"),
        (64, -96, "use --height 704 --width 1280"),
    ],
)
def test_half_a_size_or_none_at_all(height: int | None, width: int | None, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        video_size(height, width)
    assert caught.value.fix == fix


@pytest.fixture
def open_as_typed() -> Open:
    """With nothing but MODEL and a size on the command line."""

    def call(model: Path) -> VideoModel:
        return open_video_model(
            model,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            num_heads=None,
            use_ema=False,
            size=(64, 96),
        )

    return call


def test_every_file_is_told_beside_the_result(
    open_as_typed: Open, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = open_as_typed(checkpoint)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"dit           {checkpoint}",
        f"vae           {model.bundle.vae}",
        f"text encoder  {model.bundle.text_encoder}",
        f"tokenizer     {model.bundle.tokenizer}",
        f"video         64x96, {model.config.stream.fps} fps",
        *model.notes,
    ]
    assert all(note.startswith("recognised: ") for note in model.notes)


def test_what_is_missing_is_a_dash_and_a_note(
    open_as_typed: Open, denoiser: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = open_as_typed(denoiser)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:4] == ["vae           -", "text encoder  -", "tokenizer     -"]
    assert lines[4].startswith("video         64x96")
    recognised = model.notes[[n.startswith("recognised: ") for n in model.notes].index(True)]
    notes = [note for note in model.notes if note != recognised]
    assert set(lines[5:]) == {recognised, *(f"note: {note}" for note in notes)}


def test_a_size_that_no_video_has_is_refused_before_the_capture() -> None:
    with pytest.raises(RecipeError, match="larger than any video"):
        video_size(10**7, 10**7)


def test_what_is_no_tokenizer_is_refused(denoiser: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        open_model(denoiser, tokenizer=tmp_path / "tokenizer.json")
