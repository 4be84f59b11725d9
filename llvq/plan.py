"""What a compiled model takes of a machine: bytes held, bytes while it runs, and how often it runs.

Everything is read off the stage graphs, so nothing is loaded or allocated. The total covers tensors
between calls of kernels; what a kernel allocates for itself, the context of a GPU and fragmentation
come on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llvq import graphs
from llvq.artifact import Box
from llvq.backends.base import find_target
from llvq.compiler import Compiled, Stage
from llvq.graphs.liveness import peak
from llvq.graphs.ops import op_name
from llvq.plan_memory import (
    PARTS,
    KvUse,
    kv_use,
    output_bytes,
    state_bytes,
    weight_bytes,
    weight_specs,
)
from llvq.recipe import Recipe, recipe_from_dict
from llvq.roofline import Roofline, roofline
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import RunFacts

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
# What the thread that denoises runs for a chunk, and what runs beside it, on its own thread.
DENOISING = ("condition", "modulate", "denoise", "refresh")
DECODING = ("decode_first", "decode")
# It runs before all others, with nothing but its own weights in memory.
ENCODING = "encode_text"


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
    the text encoder, which are given back before the others are loaded.

    `excluded` maps a glob of the recipe to the linears of the denoiser that it keeps. `roofline` is
    there for the chips of GPUs.
    """

    target: str
    numerics: str
    weights: Mapping[str, int]
    state: Mapping[str, int]
    kv: KvUse | None
    stages: tuple[StageUse, ...]
    excluded: Mapping[str, tuple[str, ...]]
    roofline: Roofline | None

    @property
    def workspace(self) -> int:
        """Decoding overlaps with denoising, so their largest stages add; the others run alone."""
        overlapped = self._largest(DENOISING) + self._largest(DECODING)
        alone = (stage.workspace for stage in self.stages if stage.name != ENCODING)
        return max([overlapped, *alone])

    @property
    def encoding(self) -> int:
        """What prompts take that no cache has: the text encoder and its workspace."""
        return self._encoder_weights + self._largest((ENCODING,))

    @property
    def generating(self) -> int:
        weights = sum(self.weights.values()) - self._encoder_weights
        return weights + sum(self.state.values()) + self.workspace

    @property
    def total(self) -> int:
        return max(self.encoding, self.generating)

    def to_dict(self) -> dict[str, Any]:
        sums = ("workspace", "encoding", "generating", "total")
        document = asdict(self) | {name: getattr(self, name) for name in sums}
        if self.kv is not None:
            document["kv"]["bytes_per_chunk"] = self.kv.bytes_per_chunk
            document["kv"]["compression"] = self.kv.compression
        return document

    @property
    def _encoder_weights(self) -> int:
        rows = self.weights.items()
        return sum(nbytes for name, nbytes in rows if name.startswith(PARTS["text"] + ":"))

    def _largest(self, names: Iterable[str]) -> int:
        return max((stage.workspace for stage in self.stages if stage.name in names), default=0)


def plan_compiled(compiled: Compiled, *, target: str, numerics: str | None = None) -> Plan:
    """Plan a compiled model for a target, in its default numerics or those named.

    Raises TargetError.
    """
    return _plan(compiled.stages, compiled.facts, compiled.recipe, target, numerics)


def plan_box(box: Box, *, target: str, numerics: str | None = None) -> Plan:
    """Plan an open program or box, a box in its own numerics. Raises TargetError, ArtifactError."""
    manifest = box.manifest
    if target == manifest["target"]:
        numerics = numerics or manifest["numerics"]
    stages = {
        name: Stage(
            graphs.load(box.graph(name), device="meta"),
            tuple(InputSpec.from_dict(spec) for spec in manifest["contract"][name]),
            tuple(entry["outputs"]),
        )
        for name, entry in manifest["stages"].items()
    }
    facts, recipe = RunFacts.from_dict(manifest["state"]), recipe_from_dict(manifest["recipe"])
    return _plan(stages, facts, recipe, target, numerics)


def _plan(
    stages: Mapping[str, Stage],
    facts: RunFacts,
    recipe: Recipe,
    target: str,
    numerics: str | None,
) -> Plan:
    chosen = find_target(target, numerics).numerics
    return Plan(
        target=target,
        numerics=chosen,
        weights=weight_bytes(weight_specs(stages), chosen),
        state=_state(stages, facts),
        kv=kv_use(facts),
        stages=tuple(_use(name, stages[name], facts) for name in _in_order(stages)),
        excluded=_excluded(stages, recipe),
        roofline=roofline(stages, facts, recipe, target, chosen),
    )


def _state(stages: Mapping[str, Stage], facts: RunFacts) -> dict[str, int]:
    """What a session holds besides weights."""
    calls = facts.steps + 1
    rows = {
        "KV pages": facts.pages.nbytes,
        "VAE state": state_bytes(stages, facts),
        "outputs of condition": output_bytes(stages, "condition"),
        f"outputs of modulate, {calls} timesteps": output_bytes(stages, "modulate") * calls,
    }
    return {name: nbytes for name, nbytes in rows.items() if nbytes}


def _in_order(names: Iterable[str]) -> list[str]:
    """By RUNS, then by name: a manifest does not keep the order of its stages."""
    order = {name: place for place, name in enumerate(RUNS)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def _use(name: str, stage: Stage, facts: RunFacts) -> StageUse:
    nodes, top = stage.graph.graph.nodes, peak(stage.graph)
    ops = Counter(op_name(node.target) for node in nodes if node.op == "call_function")
    counts = {
        "steps": facts.steps,
        "calls": facts.steps + 1,
        "decodes": facts.frames_per_chunk // facts.latents_per_decode,
    }
    runs = RUNS.get(name, "once per chunk").format(**counts)
    most_common = dict(sorted(ops.items(), key=lambda item: (-item[1], item[0])))
    return StageUse(name, runs, len(nodes), most_common, top.nbytes, top.node)


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
