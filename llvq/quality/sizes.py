"""Bytes of the weights by part, and of the KV cache, BF16 against quantized."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch.fx import GraphModule

from llvq import graphs
from llvq.quality.pair import Pair

PACKED = {"codes": "codes", "scales": "scales", "global_scale": "global_scales"}


@dataclass(frozen=True)
class PartBytes:
    """One part of the model: `baseline` bytes became the sum of the others."""

    part: str
    baseline: int = 0
    codes: int = 0
    scales: int = 0
    global_scales: int = 0
    kept: int = 0

    @property
    def quantized(self) -> int:
        return self.codes + self.scales + self.global_scales + self.kept

    @property
    def ratio(self) -> float:
        return self.baseline / self.quantized if self.quantized else 1.0


@dataclass(frozen=True)
class Sizes:
    """`parts` count what the graphs read; `unused` is what the files hold beyond that."""

    parts: list[PartBytes]
    unused: int
    kv_format: str
    kv_chunks: int
    kv: tuple[int, int]

    @property
    def total(self) -> PartBytes:
        names = ("baseline", "codes", "scales", "global_scales", "kept")
        return PartBytes("total", **{n: sum(getattr(p, n) for p in self.parts) for n in names})


def sizes(pair: Pair) -> Sizes:
    """Reads graphs and the manifest, no weight."""
    before = _weights(stage.graph for stage in pair.baseline.stages.values())
    after = _weights(pair.graphs.values())
    packed = {t for t, r in pair.box.manifest["weights"].items() if r["op"] == "quantize"}
    parts: dict[str, PartBytes] = {}
    for name, nbytes in before.items():
        _add(parts, name, "baseline", nbytes)
    for name, nbytes in after.items():
        owner, _, leaf = name.rpartition(".")
        _add(parts, name, PACKED.get(leaf, "kept") if owner in packed else "kept", nbytes)
    held = pair.facts.pages
    return Sizes(
        parts=list(parts.values()),
        unused=_held_bytes(pair) - sum(after.values()),
        kv_format=held.text,
        kv_chunks=held.slots,
        kv=(pair.baseline.facts.pages.nbytes, held.nbytes),
    )


def _weights(modules: Iterable[GraphModule]) -> dict[str, int]:
    """Bytes of every weight that any stage reads, once each."""
    return {name: spec.nbytes for gm in modules for name, spec in graphs.weights(gm).items()}


def _add(parts: dict[str, PartBytes], weight: str, column: str, nbytes: int) -> None:
    name = weight.partition(".")[0]
    part = parts.setdefault(name, PartBytes(name))
    parts[name] = replace(part, **{column: getattr(part, column) + nbytes})


def _held_bytes(pair: Pair) -> int:
    tensors = pair.box.tensors()
    return sum(tensors[name].nbytes for name in tensors)
