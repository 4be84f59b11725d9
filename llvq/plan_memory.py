"""Bytes that a compiled model holds: weights in the form that a target computes with, and state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from llvq.compiler import Stage
from llvq.formats.kv import KV_FORMATS
from llvq.graphs import weights
from llvq.program import output_node
from llvq.runtime.executable import RunFacts
from llvq.sources import TensorSpec

PARTS = {"dit": "denoiser", "vae": "VAE", "text": "text encoder"}
PACKED = ("codes", "scales", "global_scale")


def _as_stored(leaf: str, spec: TensorSpec) -> tuple[str, int]:
    return f"NVFP4 {leaf.replace('_', ' ')}", spec.nbytes


def _as_fp8(leaf: str, spec: TensorSpec) -> tuple[str, int]:
    """Widened at load: E4M3 values, and one fp32 scale per output channel."""
    if leaf == "codes":
        return "fp8 values", spec.nbytes * 2
    return "fp8 channel scales", spec.shape[0] * 4 if leaf == "scales" else 0


# Numerics -> (form, bytes on the device) of each tensor of a packed weight.
NUMERICS: Mapping[str, Callable[[str, TensorSpec], tuple[str, int]]] = {
    "w4a4": _as_stored,
    "w4a4-emulated": _as_stored,
    "w4a16": _as_stored,
    "w4a8": _as_fp8,
}


@dataclass(frozen=True)
class KvUse:
    """The page pool. `bytes_plain` is what the same pages take in the model's own dtype.

    `kept` of the bytes are chunks held a second time, in that dtype.
    """

    kv_format: str
    slots: int
    nbytes: int
    bytes_plain: int
    kept: int = 0

    @property
    def bytes_per_chunk(self) -> int:
        """Bytes of one page."""
        return (self.nbytes - self.kept) // self.slots

    @property
    def compression(self) -> float:
        return self.bytes_plain / self.nbytes


def weight_specs(stages: Mapping[str, Stage]) -> dict[str, TensorSpec]:
    """Every weight that a stage reads, once each."""
    return {name: spec for stage in stages.values() for name, spec in weights(stage.graph).items()}


def weight_bytes(specs: Mapping[str, TensorSpec], numerics: str) -> dict[str, int]:
    """Bytes on the device, by part of the model and form."""
    packed = {name.rpartition(".")[0] for name in specs if name.endswith(".global_scale")}
    rows: Counter[str] = Counter()
    for name, spec in specs.items():
        layer, _, leaf = name.rpartition(".")
        part = PARTS.get(name.split(".")[0], "other")
        form, nbytes = f"kept {spec.dtype}".replace("torch.", ""), spec.nbytes
        if leaf in PACKED and layer in packed:
            form, nbytes = NUMERICS[numerics](leaf, spec)
        rows[f"{part}: {form}"] += nbytes
    return {name: nbytes for name, nbytes in rows.items() if nbytes}


def state_bytes(stages: Mapping[str, Stage], facts: RunFacts) -> int:
    """The temporal state of the VAE, once: the inputs of `decode` that it also returns."""
    names = {source for source, _ in facts.loops}
    inputs = stages["decode"].inputs if "decode" in stages else ()
    return sum(TensorSpec(s.dtype, s.sizes).nbytes for s in inputs if s.name in names)


def output_bytes(stages: Mapping[str, Stage], name: str) -> int:
    """What one call of a stage returns; 0 for a stage that is not there."""
    if name not in stages:
        return 0
    output = output_node(stages[name].graph.graph)
    return sum(node.meta["val"].nbytes for node in output.all_input_nodes)


def kv_use(facts: RunFacts) -> KvUse | None:
    pages = facts.pages
    if not pages.slots:
        return None
    *lead, width = pages.tensors[0][2]
    packed = KV_FORMATS[pages.kv_format].packed
    plain = prod(lead) * width * packed * facts.torch_dtype.itemsize
    kept = plain // pages.slots * pages.kept_slots
    return KvUse(pages.text, pages.slots, pages.nbytes, plain, kept)
