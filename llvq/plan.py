"""What a compiled model takes of a machine: bytes held, bytes while it runs, and how often it runs.

Everything is read off the stage graphs, lowered for the target and with their weights folded as a
loader folds them, so nothing is loaded or allocated. For a GPU the pools of PyTorch are played
through, so that the total is what it reserves of the device; the context of the GPU, its kernels
and what libraries allocate for themselves come on top. For a CPU it is bytes of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from llvq import graphs
from llvq.artifact import Box
from llvq.backends.base import find_target
from llvq.compiler import Compiled, Stage
from llvq.errors import TargetError
from llvq.graphs.ops import op_name
from llvq.graphs.weight_groups import Limits
from llvq.lowered import loops_of, lower_stages
from llvq.plan_memory import KvUse, buffer_specs, kv_use, state_specs, weight_rows
from llvq.plan_pools import CONDITION, MODULATE, Taken, alone, play
from llvq.plan_stages import RunningStage, running_stages
from llvq.recipe import Recipe, recipe_from_dict
from llvq.roofline import Roofline, roofline
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import DECODING, RunFacts, Streamed

# How often each stage runs; the order is that of a video.
RUNS = {
    "encode_text": "once per prompt",
    "encode_image": "once per image",
    "condition": "once per prompt",
    "modulate": "once per timestep, {calls} in all",
    "denoise": "{steps} times per chunk",
    "refresh": "once per chunk",
    "decode_first": "once, first latents",
    "decode": "{decodes} times per chunk",
}
# They run before all others, and are left out where nothing wants them.
ENCODING, IMAGE = "encode_text", "encode_image"


@dataclass(frozen=True)
class StageUse:
    """`workspace` is the peak of live values in bytes, reached at node `at`."""

    name: str
    runs: str
    nodes: int
    ops: Mapping[str, int]
    workspace: int
    at: str


@dataclass(frozen=True)
class Plan:
    """All sizes are bytes. `state` is held for a whole video, and so are the `weights` but those of
    the encoders; those of the text encoder are given back before the others are loaded. `workspace`
    is what stages take beside that, `loading` the most until all weights are there.

    With `streaming`, weights are in the memory of the host but `resident` bytes of them. A video
    that begins with an image takes `image` bytes more, and all else is of one that does not.
    `decoding` is all that the stages that decode take, as on a device of their own.
    `excluded` maps a glob of the recipe to the linears of the denoiser that it keeps. `roofline` is
    there for the chips of GPUs.
    """

    target: str
    numerics: str
    weights: Mapping[str, int]
    resident: int
    streaming: Streamed | None
    state: Mapping[str, int]
    workspace: Mapping[str, int]
    loading: int
    encoding: int
    image: int
    decoding: int
    kv: KvUse | None
    stages: tuple[StageUse, ...]
    excluded: Mapping[str, tuple[str, ...]]
    roofline: Roofline | None

    @property
    def held(self) -> int:
        """Weights that are on the device for a whole video, and the slots of others."""
        return self.resident + (self.streaming.slots if self.streaming else 0)

    @property
    def generating(self) -> int:
        return self.held + sum(self.state.values()) + sum(self.workspace.values())

    @property
    def total(self) -> int:
        return max(self.loading, self.encoding, self.generating)

    def to_dict(self) -> dict[str, Any]:
        sums = {name: getattr(self, name) for name in ("held", "generating", "total")}
        document = asdict(self) | sums
        if self.kv is not None:
            document["kv"]["bytes_per_chunk"] = self.kv.bytes_per_chunk
            document["kv"]["compression"] = self.kv.compression
        return document


def plan_compiled(
    compiled: Compiled, *, target: str, numerics: str | None = None, low_memory: bool = False
) -> Plan:
    """Plan a compiled model for a target, in its default numerics or those named.

    `low_memory`: with weights that stay in the memory of the host. Raises TargetError.
    """
    stages, facts, recipe = compiled.stages, compiled.facts, compiled.recipe
    return _plan(stages, facts, recipe, target, numerics, low_memory=low_memory)


def plan_box(
    box: Box, *, target: str, numerics: str | None = None, low_memory: bool = False
) -> Plan:
    """Plan an open program, or a box for its own target. Raises TargetError, ArtifactError."""
    manifest = box.manifest
    lowered = manifest["target"] is not None
    if lowered:
        numerics = numerics or manifest["numerics"]
        _check_target(box, target, numerics)
    stages = {
        name: Stage(
            graphs.load(box.graph(name), device="meta"),
            tuple(InputSpec.from_dict(spec) for spec in manifest["contract"][name]),
            tuple(entry["outputs"]),
        )
        for name, entry in manifest["stages"].items()
    }
    facts, recipe = RunFacts.from_dict(manifest["state"]), recipe_from_dict(manifest["recipe"])
    return _plan(stages, facts, recipe, target, numerics, lowered=lowered, low_memory=low_memory)


def _check_target(box: Box, target: str, numerics: str | None) -> None:
    made = box.manifest["target"], box.manifest["numerics"]
    if (target, numerics) != made:
        raise TargetError(
            f"a box for {made[0]} in {made[1]} cannot be planned for {target} in {numerics}",
            where=str(box.path),
            because="its graphs are lowered for one target",
            fix="plan the program that it was exported from",
        )


def _plan(
    stages: Mapping[str, Stage],
    facts: RunFacts,
    recipe: Recipe,
    target: str,
    numerics: str | None,
    *,
    lowered: bool = False,
    low_memory: bool = False,
) -> Plan:
    chosen = find_target(target, numerics)
    if not lowered:
        stages = lower_stages(stages, recipe, chosen).stages
        facts = replace(facts, loops=loops_of(facts.loops, stages))
    running = running_stages(stages, chosen)
    on_gpu, limits = chosen.chip is not None, Limits() if low_memory else None
    both = {name: stage for name, stage in running.items() if name != ENCODING}
    video = {name: stage for name, stage in both.items() if name != IMAGE}
    taken, more = (play(each, facts, on_gpu=on_gpu, limits=limits) for each in (video, both))
    encoder = running.get(ENCODING)
    decoding = {name: stage for name, stage in running.items() if name in DECODING}
    return Plan(
        target=target,
        numerics=chosen.numerics,
        weights=weight_rows(running),
        resident=taken.resident,
        streaming=taken.streaming,
        state=_state(running, facts, records=on_gpu and not low_memory),
        workspace=taken.workspace,
        loading=taken.loading,
        encoding=0 if encoder is None else alone(encoder, on_gpu=on_gpu, limits=limits),
        image=_device_bytes(more) - _device_bytes(taken),
        decoding=_alone(decoding, facts, on_gpu=on_gpu, limits=limits),
        kv=kv_use(facts),
        stages=tuple(_use(name, running[name], facts) for name in _in_order(stages)),
        excluded=_excluded(stages, recipe),
        roofline=roofline(stages, facts, recipe, target, chosen.numerics, lowered=True),
    )


def _alone(
    stages: Mapping[str, RunningStage], facts: RunFacts, *, on_gpu: bool, limits: Limits | None
) -> int:
    """What stages take that are on a device of their own."""
    taken = play(stages, facts, on_gpu=on_gpu, limits=limits)
    state = sum(spec.nbytes for spec in state_specs(stages, facts).values())
    return max(taken.loading, _device_bytes(taken) + state + sum(taken.workspace.values()))


def _device_bytes(taken: Taken) -> int:
    """Of weights, and of the slots that others pass through."""
    return taken.resident + (taken.streaming.slots if taken.streaming else 0)


def _state(stages: Mapping[str, RunningStage], facts: RunFacts, *, records: bool) -> dict[str, int]:
    """What a session holds besides weights."""
    calls = facts.steps + 1
    kept = {name: sum(stage.results) for name, stage in stages.items()}
    rows = {
        "KV pages": facts.pages.nbytes,
        "VAE state": sum(spec.nbytes for spec in state_specs(stages, facts).values()),
        "outputs of condition": kept.get(CONDITION, 0),
        f"outputs of modulate, {calls} timesteps": kept.get(MODULATE, 0) * calls,
    }
    if records:
        buffers = buffer_specs(stages, facts)
        rows["inputs of CUDA graphs"] = sum(spec.nbytes for spec in buffers)
    return {name: nbytes for name, nbytes in rows.items() if nbytes}


def _in_order(names: Iterable[str]) -> list[str]:
    """By RUNS, then by name: a manifest does not keep the order of its stages."""
    order = {name: place for place, name in enumerate(RUNS)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def _use(name: str, stage: RunningStage, facts: RunFacts) -> StageUse:
    nodes, (workspace, at) = stage.graph.graph.nodes, stage.allocations.peak
    ops = Counter(op_name(node.target) for node in nodes if node.op == "call_function")
    counts = {
        "steps": facts.steps,
        "calls": facts.steps + 1,
        "decodes": facts.frames_per_chunk // facts.latents_per_decode,
    }
    runs = RUNS.get(name, "once per chunk").format(**counts)
    most_common = dict(sorted(ops.items(), key=lambda item: (-item[1], item[0])))
    return StageUse(name, runs, len(nodes), most_common, workspace, at)


def _excluded(stages: Mapping[str, Stage], recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """The linears that each glob keeps; a glob that keeps none shows as such."""
    kept: dict[str, list[str]] = {glob: [] for glob in recipe.linear.exclude}
    for layer in _denoiser_linears(stages):
        glob = recipe.excluded_by(layer)
        if glob is not None:
            kept[glob].append(layer)
    return {glob: tuple(layers) for glob, layers in kept.items()}


def _denoiser_linears(stages: Mapping[str, Stage]) -> Iterable[str]:
    weights = (
        str(node.args[1].target)
        for stage in stages.values()
        for node in stage.graph.graph.nodes
        if node.target is torch.ops.aten.linear.default
    )
    found = dict.fromkeys(name.removesuffix(".weight") for name in weights)
    return [layer for layer in found if layer.startswith("dit.")]
