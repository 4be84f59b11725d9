"""From a model's configuration to compiled stages: capture, passes, and the facts for a runtime.

Nothing here reads a weight. `instantiate` joins a compiled model with a checkpoint in memory (for
comparison and tests); `box.py` writes it to disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from llvq.calibration import Calibration
from llvq.graphs.read import attach
from llvq.graphs.read import load as load_graph
from llvq.graphs.write import dump
from llvq.models.chunk import capture_chunk
from llvq.models.config import ModelConfig
from llvq.models.stages import capture_image_encoder, capture_prompt_encoder
from llvq.passes import PIPELINE, Options, Pass, Report, Rewrite, check_tolerances, run
from llvq.passes.cache_attention import page_tensors
from llvq.program import KvPool, Level, Program, weight_names
from llvq.recipe import Recipe
from llvq.runtime.contract import InputSpec
from llvq.runtime.cpu_convolutions import widen_on_cpu
from llvq.runtime.executable import CompiledStage, Executable, PageSpec, RunFacts
from llvq.sources import DictSource, JoinedSource, TensorSource
from llvq.weights import WeightRecord, materialize

# Prompt and image encoders run once per video: they are made canonical and kept in their dtype.
PIPELINE_TO_CANONICAL = tuple(step for step in PIPELINE if step.reaches <= Level.CANONICAL)
AUXILIARY = {"encode_text": capture_prompt_encoder, "encode_image": capture_image_encoder}


@dataclass(frozen=True)
class Stage:
    """A compiled stage before it meets its weights."""

    graph: GraphModule
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """A compiled model: stages, weight plan, facts for the runtime and the pass table."""

    config: ModelConfig
    recipe: Recipe
    stages: dict[str, Stage]
    weights: dict[str, WeightRecord]
    constants: dict[str, torch.Tensor]
    facts: RunFacts
    reports: tuple[Report, ...]
    rewrites: tuple[Rewrite, ...] = ()


def compile_model(
    config: ModelConfig,
    recipe: Recipe,
    *,
    calibration: Calibration | None = None,
    options: Options | None = None,
    pipeline: tuple[Pass, ...] = PIPELINE,
) -> Compiled:
    """Capture and rewrite the whole model on `meta` weights, up to level `staged`.

    `calibration`: what is known of the linears of the checkpoint that the program is for.
    Raises CaptureError, MissError, SpecError, RecipeError.
    """
    check_tolerances(pipeline, recipe)
    dtype = getattr(torch, recipe.dtype)
    latents = recipe.decode.latents_per_call
    program = capture_chunk(config, dtype, latents_per_call=latents)
    result = run(program, recipe, pipeline, options, calibration=calibration)
    stages = stages_of(program)
    weights, constants = dict(program.weights), dict(program.constants)
    for name, extra in _auxiliary(config, dtype).items():
        run(extra, recipe, PIPELINE_TO_CANONICAL)
        stages[name] = Stage(extra.graph, extra.inputs, extra.outputs)
        weights |= extra.weights
        constants |= extra.constants
    facts = _facts(config, recipe, program)
    logs = tuple(result.reports), tuple(result.rewrites)
    return Compiled(config, recipe, stages, weights, constants, facts, *logs)


def _auxiliary(config: ModelConfig, dtype: torch.dtype) -> dict[str, Program]:
    image = config.vae if config.stream.first_frame_image else None
    present = {"encode_text": config.text, "encode_image": image}
    return {name: make(config, dtype) for name, make in AUXILIARY.items() if present[name]}


def stages_of(program: Program) -> dict[str, Stage]:
    """The stages that a program was cut into, each after those that feed it."""
    return {
        name: Stage(gm, program.stage_inputs[name], program.stage_outputs[name])
        for name, gm in program.graphs.items()
        if name in program.stage_inputs
    }


def instantiate(compiled: Compiled, source: TensorSource, device: str = "cpu") -> Executable:
    """Join a compiled model with its checkpoint, all in memory, for one device to run."""
    joined = with_constants(compiled, source)
    stages = with_weights(compiled.stages, compiled.weights, joined, device)
    made = Executable(stages, compiled.facts, torch.device(device))
    widen_on_cpu((stage.graph for stage in stages.values()), made.device)
    return made


def with_weights(
    stages: Mapping[str, Stage],
    weights: Mapping[str, WeightRecord],
    source: TensorSource,
    device: str = "cpu",
) -> dict[str, CompiledStage]:
    """Carry out a weight plan in memory, and give every stage what it reads."""
    tensors: dict[str, torch.Tensor] = {}
    for record in weights.values():
        tensors |= {name: t.to(device) for name, t in materialize(record, source).items()}
    compiled = {}
    for name, stage in stages.items():
        graph = load_graph(dump(stage.graph), device=device)
        attach(graph, {weight: tensors[weight] for weight in weight_names(graph)})
        compiled[name] = CompiledStage(name, graph, stage.inputs, stage.outputs)
    return compiled


def with_constants(compiled: Compiled, source: TensorSource) -> TensorSource:
    """The checkpoint, and the constants that the configuration gives."""
    return JoinedSource([("", source), ("", DictSource(compiled.constants))])


def _facts(config: ModelConfig, recipe: Recipe, program: Program) -> RunFacts:
    dit, stream, vae = config.dit, config.stream, config.latent_vae
    copied = (
        "frames_per_chunk",
        "window_frames",
        "sink_frames",
        "steps",
        "shift",
        "sampler",
        "timesteps",
        "multi_shot_sink",
        "multi_shot_rope_offset",
        "scene_cut_prefix",
        "relative_rope",
        "fps",
    )
    schedule: dict[str, Any] = {name: getattr(stream, name) for name in copied}
    return RunFacts(
        dtype=recipe.dtype,
        latent_channels=dit.in_dim,
        latent_hw=config.latent_hw,
        text_len=dit.text_len,
        text_dim=dit.text_dim,
        spatial_stride=vae.spatial_stride,
        temporal_stride=vae.temporal_stride,
        latents_per_decode=recipe.decode.latents_per_call,
        pages=_page_spec(program.kv_pool, recipe.kv.keep),
        loops=tuple((loop.input, loop.output) for loop in program.loop_states),
        **schedule,
    )


def _page_spec(pool: KvPool | None, keep: tuple[str, ...]) -> PageSpec:
    if pool is None:
        return PageSpec("none", 0, ())
    tensors = tuple(
        (name, str(dtype).removeprefix("torch."), tuple(shape))
        for name, dtype, shape in page_tensors(pool)
    )
    return PageSpec(pool.kv_format, pool.slots, tensors, keep)
