from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llvq.checkpoints.random import write_random_checkpoint
from llvq.errors import ArtifactError, CheckpointError, TargetError
from llvq.quality.compare import Request, compare
from llvq.quality.comparison import Comparison


def test_both_sides_run_the_same_video(found: Comparison) -> None:
    video = found.video
    shapes = [(chunk.latents.shape, chunk.frames.shape) for chunk in video.baseline]
    assert shapes == [(chunk.latents.shape, chunk.frames.shape) for chunk in video.quantized]
    assert [error.index for error in video.free] == [0, 1, 2]
    assert all(10 < error.latents.sqnr_db < 60 for error in video.free + video.forced)
    assert all(error.psnr_db > 10 for error in video.free if error.psnr_db is not None)


def test_history_is_forced_from_the_second_chunk_on(found: Comparison) -> None:
    free, forced = found.video.free, found.video.forced
    assert free[0].latents == forced[0].latents
    assert free[1].latents != forced[1].latents
    assert all(error.psnr_db is None for error in forced)


def test_structure_says_what_became_of_the_linears(found: Comparison) -> None:
    found_ops = found.structure.ops["denoise"]
    before, after = found_ops["aten.linear.default"]
    assert (before, after) == (17, 1)
    # q_k_v are one, and so are o, cross q, cross o, and the two of ffn, in each of two blocks
    assert found_ops["llvq.nvfp4_linear.default"] == (0, 12)
    assert found.structure.fused == {"self_attn.q_k_v": 2, "cross_attn.k_v": 2}
    assert found.structure.excluded["dit.head.head"] == "*head.head"
    assert len(found.structure.excluded) == 6
    assert found.structure.ops["decode"] == {}


def test_bytes_are_those_of_the_files(found: Comparison, files: Any) -> None:
    total = found.sizes.total
    assert total.global_scales == 4 * len(found.layers)
    assert total.codes == 8 * total.scales
    on_disk = sum(file.stat().st_size for file in files.program.glob("weights/*"))
    held = total.quantized + found.sizes.unused
    assert held <= on_disk < held + 100_000  # and headers
    before, after = found.sizes.kv
    # 6 tokens of 64 channels: 2 bytes each, or half a byte, a scale per 16 and one of 4 bytes
    assert before / after == pytest.approx(768 / (192 + 24 + 4))


def test_json_has_every_layer_and_only_json_numbers(found: Comparison) -> None:
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(document["layers"]) == len(found.layers)
    outputs = [layer["output"]["sqnr_db"] for layer in document["layers"]]
    assert outputs == sorted(outputs)
    assert set(document["chunks"]) == {"free_running", "teacher_forced"}
    assert document["measured"]["versions"]["torch"] == torch.__version__
    assert document["summary"]["free_running"]["worst_db"] == min(
        row["sqnr_db"] for row in document["chunks"]["free_running"]
    )


def test_notes_own_up_to_random_weights(found: Comparison) -> None:
    assert any("random" in note for note in found.notes)
    assert any("noise floor" in note for note in found.notes)


def test_refuses_another_checkpoint(files: Any, tmp_path: Path) -> None:
    other = write_random_checkpoint(tmp_path, files.config, seed=7)
    with pytest.raises(CheckpointError, match="another checkpoint") as caught:
        compare(other, files.program)
    assert len(str(caught.value).splitlines()) == 4
    assert "has other values" in str(caught.value)


def test_refuses_a_missing_part_a_broken_program_and_an_absent_device(
    files: Any, tmp_path: Path
) -> None:
    alone = tmp_path / "model.pt"
    for name in ("model.pt", "config.json"):
        shutil.copy(files.checkpoint.parent / name, tmp_path / name)
    with pytest.raises(CheckpointError, match="vae") as caught:
        compare(alone, files.program)
    assert "--vae" in str(caught.value)
    with pytest.raises(ArtifactError):
        compare(files.checkpoint, tmp_path)
    with pytest.raises(TargetError, match="abacus"):
        compare(files.checkpoint, files.program, Request(device="abacus"))
