from __future__ import annotations

from llvq.quality.comparison import Comparison


def test_both_sides_run_the_same_video(found: Comparison) -> None:
    video = found.video
    shapes = [(chunk.latents.shape, chunk.frames.shape) for chunk in video.baseline]
    assert shapes == [(chunk.latents.shape, chunk.frames.shape) for chunk in video.quantized]
    assert [error.index for error in video.free] == [0, 1, 2]
    assert all(10 < error.latents.sqnr_db < 60 for error in video.free + video.forced)
    assert all(error.frames.psnr_db > 10 for error in video.free if error.frames)


def test_history_is_forced_from_the_second_chunk_on(found: Comparison) -> None:
    free, forced = found.video.free, found.video.forced
    assert free[0].latents == forced[0].latents
    assert free[1].latents != forced[1].latents
    assert all(error.frames is None for error in forced)
