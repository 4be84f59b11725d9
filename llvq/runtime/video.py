"""Pixels in and out: the first frame of image-to-video, and the mp4 that grows as frames arrive."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from llvq.errors import OutputError, SessionError

# One thread and exact arithmetic: x264 gives other bytes for another number of threads, and may for
# the approximations of another CPU. With those, a few files in ten thousand differed here.
H264_OPTIONS = {
    "crf": "18",
    "preset": "veryfast",
    "threads": "1",
    "x264-params": "cpu-independent=1",
}
BT709 = 1  # the number of BT.709 in ITU-T H.273, for primaries, transfer and matrix alike
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG


class VideoWriter:
    """An H.264 mp4 (yuv420p, BT.709) that appears under its name only once it is whole.

    Frames go to `.<name>.part` beside the target. Leaving the `with` block renames it; leaving it
    by an error, `discard()`, or a failed write removes it. The same frames give the same bytes.
    Raises OutputError: odd sizes, a folder that is missing or not writable, a full disk.
    """

    def __init__(self, path: str | Path, *, fps: int, height: int, width: int) -> None:
        self.path = Path(path)
        self.frames = 0
        self._part = self.path.with_name(f".{self.path.name}.part-{os.getpid()}")
        self._shape = (height, width, 3)
        self._time_base = Fraction(1, fps)
        self._open = False
        _check_target(self.path, height, width)
        with self._failing_cleanly(), ExitStack() as undo:
            self._container = av.open(str(self._part), "w", format="mp4")
            self._open = True
            undo.callback(self.discard)  # a signal may come here, and nobody has the writer yet
            self._set_up_stream(fps, height, width)
            # PyAV creates the file at the first frame, minutes from here; a bad folder shows now.
            self._part.open("wb").close()
            undo.pop_all()

    def _set_up_stream(self, fps: int, height: int, width: int) -> None:
        self._stream = self._container.add_stream("libx264", rate=fps, options=H264_OPTIONS)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        codec = self._stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED_RANGE

    def append(self, frames: npt.NDArray[np.uint8] | torch.Tensor) -> None:
        """Encode uint8 RGB frames [T, H, W, 3]."""
        pixels = frames.cpu().numpy() if isinstance(frames, torch.Tensor) else frames
        if not self._open:
            raise OutputError(f"{self.path} is closed", fix="open a new VideoWriter")
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._shape:
            raise OutputError(
                f"frames are {pixels.dtype} {list(pixels.shape)}",
                where=str(self.path),
                because=f"the video takes uint8 [T, {', '.join(map(str, self._shape))}]",
                fix="convert with frames_to_uint8, and open the writer at the frames' size",
            )
        with self._failing_cleanly():
            for rgb in np.ascontiguousarray(pixels):
                self._container.mux(self._stream.encode(self._yuv(rgb)))
                self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name. A second call does nothing."""
        if not self._open:
            return
        if self.frames == 0:
            self.discard()
            raise OutputError(f"{self.path} would be a video of no frames", fix="append frames")
        with self._failing_cleanly():
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(self._part, self.path)
        self._open = False

    def discard(self) -> None:
        """Remove what was written. Does nothing after close()."""
        if self._open:
            self._open = False
            # Closing writes an index, which a full disk refuses; the file is removed either way.
            with suppress(OSError):
                self._container.close()
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def _yuv(self, rgb: npt.NDArray[np.uint8]) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        frame.pts, frame.time_base = self.frames, self._time_base
        return frame

    @contextmanager
    def _failing_cleanly(self) -> Iterator[None]:
        """Turn an error of the file system into an OutputError that leaves no file behind."""
        try:
            yield
        except OSError as error:
            self.discard()
            raise _output_error(self.path, error) from error


def _check_target(path: Path, height: int, width: int) -> None:
    if height % 2 or width % 2 or min(height, width) < 2:
        raise OutputError(
            f"a video of {height}x{width} pixels cannot be written",
            where=str(path),
            because="yuv420p stores colour once per 2x2 pixels",
            fix="use an even height and an even width",
        )
    if path.is_dir():
        raise _output_error(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))


def _output_error(path: Path, error: OSError) -> OutputError:
    fixes = {
        errno.ENOENT: f"create the folder: mkdir -p {path.parent}",
        errno.ENOSPC: f"free some space on the disk of {path.parent}, or write elsewhere",
        errno.EDQUOT: f"free some of your quota in {path.parent}, or write elsewhere",
        errno.EISDIR: f"name a file in it, such as {path / 'video.mp4'}",
    }
    return OutputError(
        f"cannot write {path.name}",
        where=str(path),
        because=error.strerror or str(error),
        fix=fixes.get(error.errno or 0, "choose a path in a folder that you may write to"),
    )


def frames_to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """Decoded frames [1, 3, T, H, W], -1 to 1 and clamped to it -> uint8 RGB [T, H, W, 3]."""
    (video_CTHW,) = frames
    unit_CTHW = video_CTHW.float().clamp(-1, 1) * 0.5 + 0.5
    return (unit_CTHW * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def read_image(path: str | Path, *, height: int, width: int) -> torch.Tensor:
    """An image file as float32 [1, 3, 1, height, width], -1 to 1.

    It is stretched to the size, antialiased, as the reference does. Raises SessionError if the
    file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        raise SessionError(
            f"{Path(path).name} cannot be read as an image",
            where=str(path),
            because="it is in no image format that Pillow knows" if unknown else str(error),
            fix="pass a PNG, JPEG or WebP file",
        ) from error
    resized = upright.resize((width, height), Image.Resampling.BILINEAR)
    pixels_HWC = torch.from_numpy(np.array(resized)).float() / 127.5 - 1
    return pixels_HWC.permute(2, 0, 1)[None, :, None].contiguous()
