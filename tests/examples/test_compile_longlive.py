"""The example from end to end, on a model of the smallest size that has every stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import pytest

from examples.compile_longlive import compile_checkpoint, generate, random_checkpoint
from llvq.checkpoints.random import tiny_config

SIZE = (32, 64)


def test_a_checkpoint_becomes_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_config()
    dit = replace(tiny.dit, dim=128, ffn_dim=128, num_heads=2, num_layers=1, text_len=48)
    assert tiny.vae is not None
    config = replace(
        tiny, dit=dit, vae=replace(tiny.vae, dim=4, dec_dim=8, num_res_blocks=1), latent_hw=(2, 4)
    )
    checkpoint = random_checkpoint(tmp_path, config)
    box = compile_checkpoint(checkpoint, tmp_path, SIZE)
    assert "insert-quantize      quantized  rounds  16 sites, 10 hits, 6 excluded" in (
        capsys.readouterr().out
    )
    generate(box, tmp_path / "video.mp4", ["a kite", "a boat"], seconds=0.5)
    with av.open(str(tmp_path / "video.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 5 + 8 and frames[0].shape == (*SIZE, 3)
    assert frames[0].std() > 0
