"""Files are written whole or not at all, hold the frames they were given, and repeat exactly."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from llvq.errors import OutputError, SessionError
from llvq.runtime.video import VideoWriter, frames_to_uint8, read_image

HEIGHT, WIDTH = 64, 96


def noise(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def writer(path: Path) -> VideoWriter:
    return VideoWriter(path, fps=24, height=HEIGHT, width=WIDTH)


def write(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    with writer(path) as video:
        video.append(frames)


def assert_empty(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_frames_come_back_in_order_and_colour(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 200, 30), (20, 40, 220), (0, 0, 0), (255, 255, 255)]
    flat = (
        np.zeros((len(colours), HEIGHT, WIDTH, 3), np.uint8)
        + np.array(colours, np.uint8)[:, None, None]
    )
    target = tmp_path / "a.mp4"
    with writer(target) as video:
        video.append(flat[:2])
        video.append(torch.from_numpy(flat[2:]))
        assert [entry.name for entry in tmp_path.iterdir()] == [f".a.mp4.part-{os.getpid()}"]
    assert video.frames == len(colours)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width, stream.average_rate) == (HEIGHT, WIDTH, 24)
        assert stream.duration * stream.time_base == pytest.approx(len(colours) / 24)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert np.abs(np.stack(decoded).astype(int) - flat).max() <= 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_same_frames_same_bytes_however_they_arrive(tmp_path: Path) -> None:
    frames = noise(12)
    write(tmp_path / "a.mp4", frames)
    with writer(tmp_path / "b.mp4") as video:
        for frame in frames:
            video.append(frame[None])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), writer(target) as video:
        video.append(noise(2))
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_discard_and_close_may_be_repeated(tmp_path: Path) -> None:
    video = writer(tmp_path / "a.mp4")
    video.append(noise(2))
    video.discard()
    video.discard()
    video.close()
    assert_empty(tmp_path)
    with pytest.raises(OutputError, match="is closed"):
        video.append(noise(1))
    done = writer(tmp_path / "b.mp4")
    done.append(noise(2))
    done.close()
    done.close()
    done.discard()
    assert (tmp_path / "b.mp4").exists()


def test_a_video_of_no_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frames"), writer(tmp_path / "a.mp4"):
        pass
    assert_empty(tmp_path)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, HEIGHT, WIDTH, 3), np.float32),
        np.zeros((1, HEIGHT, WIDTH + 2, 3), np.uint8),
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
    ],
)
def test_other_frames_are_refused(tmp_path: Path, frames: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(OutputError, match="frames are"), writer(tmp_path / "a.mp4") as video:
        video.append(frames)
    assert_empty(tmp_path)


@pytest.mark.parametrize(("height", "width"), [(63, 96), (64, 95), (0, 96)])
def test_odd_sizes_are_refused(tmp_path: Path, height: int, width: int) -> None:
    with pytest.raises(OutputError, match=f"{height}x{width}"):
        VideoWriter(tmp_path / "a.mp4", fps=24, height=height, width=width)
    assert_empty(tmp_path)


def refusal(path: Path) -> OutputError:
    with pytest.raises(OutputError) as caught:
        writer(path)
    assert str(caught.value).count("\n") == 3
    return caught.value


def test_a_target_that_cannot_be_is_refused_before_any_frame(tmp_path: Path) -> None:
    assert "mkdir -p" in str(refusal(tmp_path / "missing" / "a.mp4"))
    assert "name a file in it" in str(refusal(tmp_path))
    (tmp_path / "file").touch()
    assert "Not a directory" in str(refusal(tmp_path / "file" / "a.mp4"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert "may write to" in str(refusal(tmp_path / "a.mp4"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / f".a.mp4.part-{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "a.mp4", noise(60))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert str(caught.value).count("\n") == 3
    assert "free some space" in str(caught.value)
    assert_empty(tmp_path)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_last_byte_that_does_not_fit_is_not_missed(tmp_path: Path) -> None:
    frames = noise(12)
    write(tmp_path / "a.mp4", frames)
    size = (tmp_path / "a.mp4").stat().st_size
    with largest_file(size - 1), pytest.raises(OutputError, match=r"cannot write b\.mp4"):
        write(tmp_path / "b.mp4", frames)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_frames_to_uint8_rounds_and_clamps() -> None:
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])
    frames = levels.repeat(3, 1, 1, 1)[None].transpose(2, 4)  # [1, 3, T=5, 1, 1]
    frames[0, 1] = -1.0
    pixels = frames_to_uint8(frames)
    assert pixels.dtype == torch.uint8
    assert pixels[:, 0, 0].tolist() == [[v, 0, v] for v in (0, 0, 128, 255, 255)]


def test_every_level_survives_the_way_to_floats_and_back(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.stack([ramp, ramp.T, 255 - ramp], axis=-1)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", height=16, width=16)
    assert (image.shape, image.dtype) == ((1, 3, 1, 16, 16), torch.float32)
    assert (float(image.min()), float(image.max())) == (-1.0, 1.0)
    assert np.array_equal(frames_to_uint8(image)[0].numpy(), rgb)


def test_images_are_stretched_with_antialiasing(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", height=32, width=8)
    assert image.shape == (1, 3, 1, 32, 8)
    assert float(image.abs().max()) < 0.1  # a plain subsampling would give stripes of -1 or 1


def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    text, cut = tmp_path / "a.png", tmp_path / "cut.png"
    text.write_text("no image")
    Image.fromarray(noise(1)[0]).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    for path, reason in (
        (text, "no image format"),
        (cut, "truncated"),
        (tmp_path / "b", "No such"),
    ):
        with pytest.raises(SessionError, match="cannot be read as an image") as caught:
            read_image(path, height=16, width=16)
        assert reason in str(caught.value)
        assert str(caught.value).count("\n") == 3


def test_a_signal_while_the_writer_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(*_: object) -> None:
        (tmp_path / f".a.mp4.part-{os.getpid()}").touch()
        raise SystemExit(143)

    monkeypatch.setattr(VideoWriter, "_set_up_stream", terminated)
    with pytest.raises(SystemExit):
        VideoWriter(tmp_path / "a.mp4", fps=24, height=16, width=16)
    assert list(tmp_path.iterdir()) == []
