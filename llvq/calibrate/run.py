"""Calibrate a checkpoint: real videos by the eager model, ModelOpt in between, facts in a file.

A run is cut into units. Each video is one in every phase of the config, and each weight of a sweep;
what they give is saved, and a run that is started again goes on behind the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llvq.calibrate import modelopt_backend, prompts
from llvq.calibrate.collect import PART, collect
from llvq.calibrate.configs import Config, config_of
from llvq.calibrate.facts_file import check_bare, dump_facts
from llvq.calibrate.identity import identity_of, prompts_digest
from llvq.calibrate.phases import Phases, Progress
from llvq.calibrate.videos import Videos, check_videos, embedded, given_prompts, silent
from llvq.calibrate.weight_sweep import best_block_amax
from llvq.calibrate.work import Work
from llvq.checkpoints.model import VideoModel
from llvq.errors import RecipeError
from llvq.formats.nvfp4 import BLOCK
from llvq.models.dit import CausalWanDit
from llvq.recipe import Recipe


@dataclass(frozen=True)
class Request(Videos):
    """What to calibrate with: `config` (`modelopt:awq_lite`), and on which videos."""

    config: str


@dataclass(frozen=True)
class Calibrated:
    """The file of facts. `reused`: it was finished before, by a run that was the same."""

    path: Path
    reused: bool


def calibrate(
    model: VideoModel,
    recipe: Recipe,
    request: Request,
    work: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Calibrate the linears that `recipe` quantizes, or go on with it, in the folder `work`.

    `force` begins anew in a folder of another run. Raises RecipeError, CheckpointError,
    SessionError, TargetError (no ModelOpt, no such device), OutputError.
    """
    config, tell = config_of(request.config), progress or silent
    check_bare(model)
    check_videos(request)
    tool = modelopt_backend.modelopt_version()
    sized = request.sized(model)
    layers = quantized_layers(model, recipe)
    given = given_prompts(model, request)
    videos = {
        "prompts": prompts_digest(given),
        "videos": len(given),
        "chunks": request.chunks,
        "latent_hw": list(sized.latent_hw),
        "seed": request.seed,
    }
    state = Work(work, identity_of(model, config, layers, videos, tool), force=force)
    if state.facts.is_file():
        return Calibrated(state.facts, reused=True)
    embeds = _embeds(model, given, request, state, tell)
    shots = request.of(embeds)
    dit = load(model, request.device)
    phases = Phases(config, sized, shots, state, tell)
    facts = _facts(dit, model, layers, config, phases, state, tell)
    made = {**state.identity, "torch": torch.__version__, "device": request.device}
    state.write(state.facts.name, dump_facts(facts, made))
    state.clear()
    return Calibrated(state.facts, reused=False)


def quantized_layers(model: VideoModel, recipe: Recipe) -> tuple[str, ...]:
    """Module paths of the denoiser's linears that the recipe quantizes. Raises RecipeError."""
    with torch.device("meta"):
        dit = CausalWanDit(model.config.dit)
    layers = tuple(
        name
        for name, module in dit.named_modules()
        if isinstance(module, nn.Linear)
        and not recipe.excluded_by(PART + name)
        and module.in_features % BLOCK == 0
    )
    if not layers:
        raise RecipeError(
            f"recipe {recipe.name} leaves nothing to calibrate",
            because="it keeps every linear of the denoiser",
            fix="leave out --calibrate, or exclude less in [linear] exclude",
        )
    return layers


def load(model: VideoModel, device: str) -> CausalWanDit:
    """The eager denoiser in bf16, with weights of its own: ModelOpt changes them in place."""
    with torch.device("meta"):
        dit = CausalWanDit(model.config.dit, relative_rope=model.config.stream.relative_rope)
    tensors = prompts.loaded(model.source, PART, device)
    dit.load_state_dict(tensors, assign=True)
    return dit.eval().requires_grad_(False)


def _facts(
    dit: CausalWanDit,
    model: VideoModel,
    layers: tuple[str, ...],
    config: Config,
    phases: Phases,
    state: Work,
    tell: Progress,
) -> dict[str, Tensor]:
    modelopt_backend.calibrate(dit, layers, config, phases)
    facts = collect(dit, layers)
    return facts | _swept(dit, layers, state, tell) if config.sweeps_weights else facts


def _swept(
    dit: CausalWanDit, layers: tuple[str, ...], state: Work, tell: Progress
) -> dict[str, Tensor]:
    """The weights of all layers, each saved when it is done."""
    facts: dict[str, Tensor] = {}
    names = {layer: f"{PART}{layer}.weight_amax" for layer in layers}
    for name in names.values():
        saved = state.get(name)
        facts |= saved[0] if saved else {}
    tell("mse, weights", len(facts), len(layers))
    for layer, name in names.items():
        if name not in facts:
            facts[name] = best_block_amax(dit.get_parameter(f"{layer}.weight")).cpu()
            state.put(name, {name: facts[name]})
            tell("mse, weights", len(facts), len(layers))
    return facts


def _embeds(
    model: VideoModel,
    given: tuple[str, ...] | Tensor,
    request: Request,
    state: Work,
    tell: Progress,
) -> Tensor:
    if saved := state.get("prompts"):
        return saved[0][prompts.TENSOR]
    embeds = embedded(model, given, request.device, tell)
    if not isinstance(given, Tensor):
        state.put("prompts", {prompts.TENSOR: embeds})
    return embeds
