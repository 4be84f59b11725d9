"""Whole calibrations of a small checkpoint: right, resumed to the bit, reused, refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llvq.calibrate.configs import CONFIGS
from llvq.calibrate.facts_file import read_header, with_facts
from llvq.calibrate.prompts import encode, read_prompts
from llvq.calibrate.rollout import Video, roll
from llvq.calibrate.run import Request, calibrate, load, quantized_layers
from llvq.checkpoints.model import VideoModel
from llvq.errors import CheckpointError, RecipeError, TargetError
from llvq.recipe import BF16, NVFP4, LinearRecipe

MakeRequest = Callable[[str], Request]


class Stop:
    """A progress that keeps what it is told, and interrupts where something is `steps` further."""

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self.told: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        further = bool(self.told) and self.told[-1][0] == what
        self.told.append((what, done, total))
        if self.steps is not None and further:
            self.steps -= 1
            if self.steps == 0:
                raise KeyboardInterrupt


def facts_of(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.fixture(scope="module")
def finished(
    model: VideoModel, request_of: MakeRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, list[tuple[str, int, int]]]]:
    """The facts of an uninterrupted run of each config, and what it told."""
    done: dict[str, tuple[Path, list[tuple[str, int, int]]]] = {}

    def run(name: str) -> tuple[Path, list[tuple[str, int, int]]]:
        if name not in done:
            told = Stop(None)
            folder = tmp_path_factory.mktemp(name) / "work"
            found = calibrate(model, NVFP4, request_of(name), folder, progress=told)
            assert not found.reused
            done[name] = found.path, told.told
        return done[name]

    return run


class Largest:
    """The largest magnitude of every linear's input, by hooks of our own."""

    def __init__(self, model: nn.Module) -> None:
        self.amax: dict[str, float] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor]) -> None:
            largest = float(inputs[0].abs().max())
            self.amax[name] = max(self.amax.get(name, 0.0), largest)

        return keep


@pytest.mark.parametrize("name", ["max", "mse"])
def test_scales_are_the_largest_inputs(
    model: VideoModel, prompts_file: Path, finished: Callable[..., tuple[Path, object]], name: str
) -> None:
    dit = load(model, "cpu")
    largest = Largest(dit)
    embeds = encode(model, read_prompts(prompts_file), "cpu", done=int)
    for seed, row in enumerate(embeds.split(1)):
        roll(dit, model.config, Video(row, seed, 2), done=int)
    facts = facts_of(finished(name)[0])
    layers = quantized_layers(model, NVFP4)
    assert len(layers) == 10
    for layer in layers:
        scale = facts[f"dit.{layer}.input_scale"]
        torch.testing.assert_close(scale * 2688, torch.tensor(largest.amax[layer]))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_facts_join_the_checkpoint(
    model: VideoModel, finished: Callable[..., tuple[Path, object]], name: str
) -> None:
    path, _ = finished(name)
    joined = with_facts(model, path)
    layers = quantized_layers(model, NVFP4)
    assert sorted(joined.calibration) == sorted(f"dit.{layer}" for layer in layers)
    fact = joined.calibration["dit.blocks.0.ffn.2"]
    assert fact.input_scale
    assert (fact.pre_quant_scale is None) == (name in ("max", "mse"))
    assert (fact.rank == 32) == (name == "svdquant")
    assert (fact.weight_amax is None) == (name != "mse")
    q, k, v = (joined.calibration[f"dit.blocks.0.self_attn.{n}"] for n in "qkv")
    assert (q.input_scale, q.pre_quant_scale) == (k.input_scale, k.pre_quant_scale)
    assert (q.input_scale, q.pre_quant_scale) == (v.input_scale, v.pre_quant_scale)
    header = read_header(path)
    assert header["config"]["name"] == name and header["videos"] == 2 and header["chunks"] == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["calibration.safetensors", "run.json"]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_interrupted_and_resumed_is_uninterrupted(
    model: VideoModel,
    request_of: MakeRequest,
    finished: Callable[..., tuple[Path, list[object]]],
    tmp_path: Path,
    name: str,
) -> None:
    whole, told = finished(name)
    interrupted = 0
    while True:  # a video has two chunks, so each attempt finishes one and is stopped in the next
        stop = Stop(3)
        try:
            found = calibrate(model, NVFP4, request_of(name), tmp_path / "w", progress=stop)
        except KeyboardInterrupt:
            interrupted += 1
            assert not (tmp_path / "w" / "calibration.safetensors").exists()
        else:
            break
    assert interrupted >= 2 * CONFIGS[name].phases - 1
    assert len(stop.told) < len(told)
    assert found.path.read_bytes() == whole.read_bytes()


def test_progress_says_what_and_how_much(
    finished: Callable[..., tuple[Path, list[tuple[str, int, int]]]],
) -> None:
    _, told = finished("svdquant")
    names = list(dict.fromkeys(what for what, _, _ in told))
    assert names == ["prompts", *(f"svdquant, pass {n} of 3" for n in (1, 2, 3))]
    assert [row[1:] for row in told[-5:]] == [(n, 4) for n in range(5)]


def test_a_finished_run_is_reused(
    model: VideoModel, request_of: MakeRequest, finished: Callable[..., tuple[Path, object]]
) -> None:
    path, _ = finished("max")
    told = Stop(None)
    found = calibrate(model, NVFP4, request_of("max"), path.parent, force=True, progress=told)
    assert found.reused and found.path == path and told.told == []


@pytest.mark.parametrize("change", ["chunks", "seed", "size", "config", "recipe"])
def test_another_run_is_refused_in_its_folder(
    model: VideoModel,
    request_of: MakeRequest,
    finished: Callable[..., tuple[Path, object]],
    change: str,
) -> None:
    path, _ = finished("max")
    request, recipe = request_of("max"), NVFP4
    if change == "recipe":
        recipe = replace(recipe, linear=LinearRecipe(exclude=("*.ffn.*", *recipe.linear.exclude)))
    else:
        values = {"chunks": 3, "seed": 1, "size": (64, 64), "config": "modelopt:mse"}
        request = replace(request, **{change: values[change]})  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="another calibration was begun here"):
        calibrate(model, recipe, request, path.parent)
    assert path.is_file()


def test_the_checkpoint_in_memory_is_not_changed(
    model: VideoModel, request_of: MakeRequest, finished: Callable[..., tuple[Path, object]]
) -> None:
    dit = load(model, "cpu")
    assert all(
        torch.equal(parameter, model.source.read(f"dit.{name}"))
        for name, parameter in dit.named_parameters()
    )


def test_embeddings_in_place_of_prompts(
    model: VideoModel, embeds_file: Path, tmp_path: Path
) -> None:
    bare = replace(model, bundle=replace(model.bundle, tokenizer=None))
    request = Request("modelopt:max", prompts=embeds_file, chunks=1)
    found = calibrate(bare, NVFP4, request, tmp_path / "w")
    assert read_header(found.path)["videos"] == 3
    with pytest.raises(CheckpointError, match="no tokenizer"):
        calibrate(bare, NVFP4, replace(request, prompts=None), tmp_path / "v")
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"chunks": 0}, RecipeError, "0 chunks"),
        ({"device": "cuda:9"}, TargetError, "cannot calibrate on 'cuda:9'"),
        ({"config": "modelopt:int4"}, RecipeError, "no calibration"),
    ],
)
def test_what_cannot_be_run(
    model: VideoModel, tmp_path: Path, change: dict[str, object], kind: type[Exception], said: str
) -> None:
    request = replace(Request("modelopt:max"), **change)  # type: ignore[arg-type]
    with pytest.raises(kind, match=said):
        calibrate(model, NVFP4, request, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_recipe_that_keeps_everything(model: VideoModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leaves nothing to calibrate"):
        calibrate(model, BF16, Request("modelopt:max"), tmp_path / "w")
