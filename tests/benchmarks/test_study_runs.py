"""The videos of a study on the tiny model: rows keep to their recipe, seed and order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.studies import KV, READING, WEIGHTS, page_bytes
from benchmarks.study_parts import Parts
from benchmarks.study_rows import Row, over_seeds
from benchmarks.study_runs import Calibrations, Setting, Study, Variant, run_study, setting
from examples.tiny_longlive.identity import Identity
from examples.tiny_longlive.spans import Drift
from llvq.calibrate.facts_file import read_header
from llvq.checkpoints.bundle import Bundle
from llvq.checkpoints.model import VideoModel, open_model
from llvq.checkpoints.random import tiny_config, write_random_checkpoint
from llvq.compiler import compile_model, instantiate
from llvq.errors import SessionError
from llvq.formats.kv import KV_FORMATS
from llvq.models.config import ModelConfig
from llvq.recipe import BF16
from llvq.runtime.session import Prompt
from llvq.sources import DictSource

CHUNKS, SEEDS = 5, (3, 4)
NOWHERE = Calibrations(Path(), None, "cpu")
Weights = Callable[[ModelConfig], DictSource]


def make_setting(config: ModelConfig, weights: DictSource, **options: Any) -> Setting:
    config = replace(config, stream=replace(config.stream, steps=1))
    bundle = Bundle(Path("model.pt"), None, None, None, ())
    model = VideoModel(config, weights, {}, bundle, ())
    plain = instantiate(compile_model(config, BF16), weights)
    random = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 5, 32, generator=random).bfloat16()
    scripts = {seed: [Prompt(embeds)] * CHUNKS for seed in SEEDS}
    prompts = {seed: [f"prompt {seed}"] * CHUNKS for seed in SEEDS}
    return Setting(
        model, plain, scripts, prompts, 1, **{"judge": None, "calibrations": NOWHERE, **options}
    )


@pytest.fixture(scope="module")
def tiny(tiny_config: ModelConfig, make_weights: Weights) -> Setting:
    """One head of 64 channels: integer pages have groups of as many."""
    config = replace(tiny_config, dit=replace(tiny_config.dit, num_heads=1))
    return make_setting(config, make_weights(config))


@pytest.fixture(scope="module")
def kv(tiny: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    return {row.name: row for row in run_study(KV, tiny, Parts(tmp_path_factory.mktemp("kv")))}


def sqnr(row: Row) -> float:
    return over_seeds(row, "sqnr_median")[0]


def test_more_bits_are_closer(kv: dict[str, Row]) -> None:
    assert list(kv) == ["bf16", *(variant.name for variant in KV.variants)]
    int2, int4, nvfp4, kept, fp8 = (
        sqnr(kv[name])
        for name in ("int2, groups of 64", "int4, groups of 64", "nvfp4",
                     "nvfp4, sink and newest in bf16", "fp8")
    )  # fmt: skip
    assert int2 < int4 < fp8 and int2 < nvfp4 < kept and nvfp4 < fp8
    assert sqnr(kv["bf16"]) == math.inf and sqnr(kv["bf16, other seed"]) < int2


def test_bytes_are_those_of_the_format(kv: dict[str, Row], tiny: Setting) -> None:
    """A window of four chunks; kept are the sink and two slots for the newest."""
    sizes = (2, tiny.model.config.chunk_tokens, 1, 64, torch.bfloat16)
    chunk = {name: kind.bytes_per_chunk(*sizes) for name, kind in KV_FORMATS.items()}
    assert kv["bf16"].nbytes == 4 * chunk["none"] == page_bytes(tiny.plain)
    assert kv["int2, groups of 64"].nbytes == 4 * chunk["int2"]
    kept = kv["nvfp4, sink and newest in bf16"]
    assert kept.nbytes == 4 * chunk["nvfp4"] + 3 * chunk["none"]


def test_the_first_chunk_has_no_history(kv: dict[str, Row]) -> None:
    """Another format of pages cannot touch it; in every later one the error is there."""
    for name in ("fp8", "nvfp4", "int4, groups of 64"):
        for sample in kv[name].samples:
            assert [math.isinf(chunk["sqnr_db"]) for chunk in sample.chunks] == [
                True, *[False] * (CHUNKS - 1)
            ]  # fmt: skip


def test_seeds_are_other_videos(kv: dict[str, Row]) -> None:
    one, two = kv["nvfp4"].samples
    assert (one.seed, two.seed) == SEEDS and one.prompts == ("prompt 3",)
    assert one.numbers != two.numbers


def test_an_interrupted_study_goes_on(
    tiny: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After one seed of one row: only the other is made."""
    study, parts = replace(KV, variants=KV.variants[-1:]), Parts(tmp_path / "parts")
    first = replace(tiny, scripts={SEEDS[0]: tiny.scripts[SEEDS[0]]})
    run_study(study, first, parts)
    capsys.readouterr()
    found = run_study(study, tiny, parts)
    dots = capsys.readouterr().err.count(".")
    assert dots == 2 * CHUNKS  # a video of bf16 and one of the row
    for same in (parts, Parts(tmp_path / "new")):
        assert repr(run_study(study, tiny, same)) == repr(found), "also where a number is NaN"
    assert capsys.readouterr().err.count("made before") == 2


def test_rules_of_weights_are_rows_too(tiny: Setting, tmp_path: Path) -> None:
    rules = WEIGHTS.variants[len(READING) :]
    assert [variant.name for variant in rules] == [
        "max", "four_over_six", "mse_sweep", "four_over_six, awq_lite", "four_over_six, svdquant"
    ]  # fmt: skip
    plain, found = run_study(replace(WEIGHTS, variants=rules[:1]), tiny, Parts(tmp_path))
    assert found.nbytes < plain.nbytes
    assert all(math.isfinite(chunk["sqnr_db"]) for s in found.samples for chunk in s.chunks)


def share_of_bright(frames: Sequence[Tensor], prompts: Sequence[str], fps: float) -> Identity:
    """Not of the first chunk, which says that it cannot tell; it falls by 7 a minute."""
    assert len(frames) == len(prompts) == CHUNKS and prompts[0].startswith("prompt")
    score = [(f > 127).float().mean().item() for f in frames]
    drift = {"score": Drift(-7.0, 0.1)}
    return Identity([], [None, *score[1:]], [], [], objects=[], others={}, drift=drift)


def test_frames_and_identity_are_judged_where_there_are_frames(
    whole_config: ModelConfig, make_whole_weights: Weights, tmp_path: Path
) -> None:
    weights = make_whole_weights(whole_config)
    at = make_setting(whole_config, weights, judge=share_of_bright)
    study = Study("one row", (Variant("again", BF16),), first=0, nbytes=page_bytes)
    plain, again = run_study(study, at, Parts(tmp_path))
    assert plain.samples[0].numbers == again.samples[0].numbers
    numbers = again.samples[0].numbers
    assert numbers["psnr_median"] == math.inf and numbers["ssim_last"] == pytest.approx(1)
    assert 0 <= numbers["identity"] <= 1 and numbers["identity_drift"] == -7.0
    assert math.isnan(again.samples[0].chunks[0]["identity"])


def test_a_calibrated_row_brings_facts_of_other_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint on disk with its text encoder; ModelOpt sees prompts of its own."""
    config = tiny_config()
    dit = replace(config.dit, dim=64, ffn_dim=64, num_heads=1, num_layers=1, text_len=16)
    stream = replace(config.stream, first_frame_image=False)
    config = replace(config, dit=dit, stream=stream, vae=None, latent_hw=(2, 2))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball", encoding="utf-8")
    model = open_model(write_random_checkpoint(tmp_path, config, seed=0))
    calibrations = Calibrations(tmp_path, prompts, "cpu")
    (smoothed,) = (v for v in WEIGHTS.variants if v.calibrate == "modelopt:awq_lite")
    facts = calibrations.of(model, smoothed).calibration
    made = read_header(tmp_path / "modelopt-awq_lite" / "calibration.safetensors")
    assert (made["videos"], made["chunks"], made["config"]["name"]) == (1, 4, "awq_lite")
    assert facts and all(layer.pre_quant_scale for layer in facts.values())
    assert capsys.readouterr().err.count("."), "it is long work"
    assert calibrations.of(model, smoothed).calibration == facts
    assert not capsys.readouterr().err, "made once"


def test_prompts_need_an_encoder(tiny: Setting) -> None:
    with pytest.raises(SessionError, match="no text encoder"):
        setting(
            tiny.model, {0: ("a",)}, chunks=2, device="cpu", steps=None, judge=None,
            calibrations=NOWHERE,
        )  # fmt: skip
