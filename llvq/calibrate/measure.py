"""How sensitive the linears of a checkpoint are, on real videos of its eager denoiser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from llvq.calibrate.budget import Spending, spend, with_budget
from llvq.calibrate.collect import PART
from llvq.calibrate.phases import Counted, Progress
from llvq.calibrate.rollout import play
from llvq.calibrate.run import load, quantized_layers
from llvq.calibrate.sensitivity import SensitiveRollout, quantized
from llvq.calibrate.videos import Videos, check_videos, embedded, given_prompts, silent
from llvq.checkpoints.model import VideoModel
from llvq.recipe import Recipe


@dataclass(frozen=True)
class Sensitivities:
    """By module path of the denoiser: the energy that 4 bits of a linear add to the velocity, to
    first order, and its number of weights. `energy` is that of the velocities."""

    scores: Mapping[str, float]
    elements: Mapping[str, int]
    energy: float


def measure(
    model: VideoModel, recipe: Recipe, videos: Videos, *, progress: Progress | None = None
) -> Sensitivities:
    """Ask the linears that `recipe` quantizes, at every call of every video.

    Raises RecipeError, CheckpointError, SessionError, TargetError.
    """
    check_videos(videos)
    tell = progress or silent
    layers = quantized_layers(model, recipe)
    embeds = embedded(model, given_prompts(model, videos), videos.device, tell)
    dit, config = load(model, videos.device), videos.sized(model)
    packed = quantized(dit, layers, recipe.linear)
    scores, energy, shots = Counter[str](), 0.0, videos.of(embeds)
    chunks = Counted(tell, "sensitivity, chunks", len(shots) * videos.chunks)
    for video in shots:
        rollout = SensitiveRollout(dit, config.stream, packed, seed=video.seed)
        play(rollout, config, video, done=chunks)
        scores.update(rollout.scores)
        energy += rollout.energy
    elements = {name: dit.get_parameter(f"{name}.weight").numel() for name in layers}
    return Sensitivities(dict(scores), elements, energy)


def within_budget(
    model: VideoModel,
    recipe: Recipe,
    videos: Videos,
    bits: float,
    *,
    progress: Progress | None = None,
) -> tuple[Recipe, Spending]:
    """The recipe that keeps what is worth most in bf16, for `bits` per weight, and what it keeps.

    Raises what `measure` raises.
    """
    found = measure(model, recipe, videos, progress=progress)
    spending = spend(found.scores, found.elements, bits)
    return with_budget(recipe, spending, prefix=PART), spending
