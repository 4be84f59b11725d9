"""Bytes that a compiled model holds: weights in the form that a target computes with, and state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from llvq.formats.kv import KV_FORMATS
from llvq.plan_stages import Fold, RunningStage
from llvq.runtime.denoiser import EVERY_CALL
from llvq.runtime.executable import DECODING, RunFacts
from llvq.sources import TensorSpec

PARTS = {"dit": "denoiser", "vae": "VAE", "text": "text encoder"}
PACKED = ("codes", "scales", "global_scale")
FP8 = ("fp8 values", "fp8 channel scales")
# What ops that are run at load give.
FORMS = {"widen": FP8, "fp8_conv_weight": FP8, "swizzle_scales": ("NVFP4 scales",)}


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


def weight_rows(stages: Mapping[str, RunningStage]) -> dict[str, int]:
    """Bytes of all weights that stages hold, each once, by part of the model and form."""
    specs = {name: spec for stage in stages.values() for name, spec in stage.weights.items()}
    packed = {name.rpartition(".")[0] for name in specs if name.endswith(".global_scale")}
    labels = {name: label for stage in stages.values() for name, label in _folded(stage.folds)}
    rows: Counter[str] = Counter()
    for name, spec in specs.items():
        layer, _, leaf = name.rpartition(".")
        kept = f"kept {spec.dtype}".replace("torch.", "")
        form = f"NVFP4 {leaf.replace('_', ' ')}" if leaf in PACKED and layer in packed else kept
        rows[labels.get(name, f"{part_of(name)}: {form}")] += spec.nbytes
    return {name: nbytes for name, nbytes in rows.items() if nbytes}


def _folded(folds: Iterable[Fold]) -> Iterator[tuple[str, str]]:
    for fold in folds:
        part, forms = part_of(fold.sources[0]), FORMS.get(fold.op, ())
        for name, place in fold.results.items():
            form = forms[place] if place < len(forms) else f"{fold.op.replace('_', ' ')}"
            yield name, f"{part}: {form}"


def part_of(weight: str) -> str:
    return PARTS.get(weight.split(".")[0], "other")


def state_specs(stages: Mapping[str, RunningStage], facts: RunFacts) -> dict[str, TensorSpec]:
    """What the VAE remembers from call to call: inputs of the stages that decode which stay, or
    which come back as outputs."""
    loops = {source for source, _ in facts.loops}
    inputs = [spec for name in DECODING if name in stages for spec in stages[name].inputs]
    held = [spec for spec in inputs if spec.rate == "state" or spec.name in loops]
    return {spec.name: TensorSpec(spec.dtype, spec.sizes) for spec in held}


def buffer_specs(stages: Mapping[str, RunningStage], facts: RunFacts) -> list[TensorSpec]:
    """Copies of inputs that CUDA graphs of the denoiser read, one of each shape."""
    pages = {name for name, _, _ in facts.pages.tensors}
    found: dict[tuple[str, tuple[int, ...]], TensorSpec] = {}
    for name in EVERY_CALL:
        for spec in stages[name].inputs if name in stages else ():
            for size in spec.allowed or (0,):
                shape = tuple(size if s is None else s for s in spec.shape)
                if spec.name not in pages:
                    found[spec.name, shape] = TensorSpec(spec.dtype, shape)
    return list(found.values())


def kv_use(facts: RunFacts) -> KvUse | None:
    pages = facts.pages
    if not pages.slots:
        return None
    *lead, width = pages.tensors[0][2]
    packed = KV_FORMATS[pages.kv_format].packed
    plain = prod(lead) * width * packed * facts.torch_dtype.itemsize
    kept = plain // pages.slots * pages.kept_slots
    return KvUse(pages.text, pages.slots, pages.nbytes, plain, kept)
