from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llvq.bench.stages import random_script
from llvq.box import write_program
from llvq.checkpoints.model import open_model
from llvq.checkpoints.random import write_random_checkpoint
from llvq.compiler import compile_model
from llvq.quality.compare import Request, compare
from llvq.quality.comparison import Comparison
from llvq.quality.rollout import Take, run, run_forced
from llvq.recipe import BF16, DecodeRecipe
from llvq.runtime import session
from llvq.runtime.executable import Executable
from tests.runtime.fakes import Recorder


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


def test_a_teacher_is_heard_where_a_gpu_would_replay(
    executable: Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording of the refresh stage would store what the student made."""
    take = Take(random_script(executable, 3), seed=1, steps=2, latents_only=True)
    teacher = run(executable, replace(take, seed=2), done=lambda: None)
    wanted = run_forced(executable, take, teacher, done=lambda: None)
    monkeypatch.setattr(session, "recorder", lambda *_: Recorder())
    found = run_forced(executable, take, teacher, done=lambda: None)
    free = run(executable, take, done=lambda: None)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(found, wanted, strict=True))
    assert not torch.equal(found[1].latents, free[1].latents)


def test_what_decoding_in_fp8_costs_is_a_psnr(files: Any, tmp_path: Path) -> None:
    """Nothing else is quantized: latents are the same, and frames are not."""
    config = replace(files.config, vae=replace(files.config.vae, dec_dim=16))
    checkpoint = write_random_checkpoint(tmp_path, config, seed=0)
    model = open_model(checkpoint, size=config.pixel_hw)
    recipe = replace(BF16, name="decode-in-fp8", decode=DecodeRecipe(conv="fp8"))
    program, tokenizer = tmp_path / "model.nvfp4", model.bundle.tokenizer
    write_program(compile_model(model.config, recipe), model.source, program, tokenizer=tokenizer)
    found = compare(checkpoint, program, Request(chunks=1))
    (row,) = found.to_dict()["chunks"]["free_running"]
    assert row["sqnr_db"] == "inf" and math.isfinite(row["psnr_db"])
    assert 20 < row["psnr_db"] < 70
