"""What a comparison found: data, its summaries, and its JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

from llvq.quality.attention import AttentionError
from llvq.quality.calls import CallErrors, median_by_moment
from llvq.quality.health import Health
from llvq.quality.layers import LayerError
from llvq.quality.metrics import NOTHING, Energies, slope
from llvq.quality.rollout import ChunkError, chunk_health
from llvq.quality.sizes import Sizes
from llvq.quality.structure import Structure
from llvq.runtime.session import Chunk

# By the name of a curve and the side, bf16 or nvfp4: a value for each chunk, NaN where unknown.
Judged = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Video:
    """One script run by both sides; `baseline` and `quantized` are the free-running chunks.

    What to hold the errors against, None if it was not asked for: `floor`, BF16 with another
    attention implementation, and `ceiling`, BF16 from another seed, each against BF16. `judged`
    is what the judge of a request said.
    """

    free: list[ChunkError]
    forced: list[ChunkError]
    floor: list[ChunkError] | None
    ceiling: list[ChunkError] | None
    baseline: list[Chunk]
    quantized: list[Chunk]
    steps: int
    judged: Judged = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, list[ChunkError]]:
        """What was run, by name."""
        named = {
            "free_running": self.free,
            "teacher_forced": self.forced,
            "noise_floor": self.floor,
            "other_seed": self.ceiling,
        }
        return {name: errors for name, errors in named.items() if errors is not None}

    @cached_property
    def health(self) -> dict[str, list[Health]]:
        """The health of both sides, chunk by chunk; empty lists without frames."""
        return {"bf16": chunk_health(self.baseline), "nvfp4": chunk_health(self.quantized)}


@dataclass(frozen=True)
class Kind:
    """The linears of one kind, or attention over pages, over all blocks; energies added up."""

    name: str
    layers: int
    weight: Energies
    output: Energies


@dataclass(frozen=True)
class Comparison:
    """All that was found. `measured` says on what, `notes` what it does not mean."""

    measured: dict[str, Any]
    notes: list[str]
    structure: Structure
    sizes: Sizes
    layers: list[LayerError]
    attention: list[AttentionError]
    video: Video

    @property
    def ops(self) -> list[LayerError | AttentionError]:
        """All whose output was measured."""
        return [*self.layers, *self.attention]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Numbers that are not finite are "inf", "-inf" or "nan"."""
        total, video = self.sizes.total, self.video
        document = {
            "measured": self.measured,
            "notes": self.notes,
            "structure": {**asdict(self.structure), "changed": self.structure.changed},
            "bytes": {**asdict(self.sizes), "total": asdict(total) | {"ratio": total.ratio}},
            "layers": [_layer_row(error, video.steps) for error in worst_first(self.layers)],
            "attention": [_attention_row(error, video.steps) for error in self.attention],
            "kinds": [_kind_row(kind) for kind in by_kind(self.ops)],
            "moments": median_by_moment(self.ops, video.steps),
            "chunks": {
                name: [chunk_row(error) for error in run] for name, run in video.runs.items()
            },
            "summary": {name: summary(run) for name, run in video.runs.items()},
            "health": {side: [h.to_dict() for h in found] for side, found in video.health.items()},
            "judged": video.judged,
        }
        return _spell(document)


def worst_first(layers: Sequence[LayerError]) -> list[LayerError]:
    """By SQNR of the output, and of the weight for a layer that never ran."""
    return sorted(layers, key=lambda e: (e.output.total if e.output.calls else e.weight).sqnr_db)


def by_kind(ops: Sequence[LayerError | AttentionError]) -> list[Kind]:
    """One row for q of all blocks, one for k, ..., in order of the model."""
    kinds: dict[str, Kind] = {}
    for error in ops:
        seen = kinds.get(error.kind, Kind(error.kind, 0, NOTHING, NOTHING))
        sums = (seen.weight + error.weight, seen.output + error.output.total)
        kinds[error.kind] = Kind(error.kind, seen.layers + 1, *sums)
    return list(kinds.values())


def summary(errors: Sequence[ChunkError]) -> dict[str, float]:
    """Worst, median and last chunk, and the drift, of the SQNR of latents in dB."""
    values = [error.latents.sqnr_db for error in errors]
    return {
        "worst_db": min(values),
        "median_db": median(values),
        "last_db": values[-1],
        "drift_db_per_chunk": slope(values),
    }


def chunk_row(error: ChunkError) -> dict[str, Any]:
    frames = error.frames.to_dict() if error.frames else {}
    return {"chunk": error.index, **error.latents.to_dict(), **frames}


def _layer_row(error: LayerError, steps: int) -> dict[str, Any]:
    layer = error.layer
    named = {"name": layer.name, "kind": layer.kind, "target": layer.target}
    return {**named, "weight": error.weight.to_dict(), **_output_row(error.output, steps)}


def _attention_row(error: AttentionError, steps: int) -> dict[str, Any]:
    return {"name": error.name, "kind": error.kind, **_output_row(error.output, steps)}


def _output_row(output: CallErrors, steps: int) -> dict[str, Any]:
    """Over all calls, and the SQNR of each: by step, a value for each chunk."""
    by_step = {
        name: [found.sqnr_db for found in calls] for name, calls in output.moments(steps).items()
    }
    total = output.total.to_dict() if output.calls else None
    return {"calls": output.calls, "output": total, "sqnr_db_by_step": by_step}


def _kind_row(kind: Kind) -> dict[str, Any]:
    sums = {"weight": kind.weight.to_dict(), "output": kind.output.to_dict()}
    return {"name": kind.name, "layers": kind.layers, **sums}


def _spell(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spell(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spell(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
