"""Check vectors: what every stage gave on the machine that exported the box, to replay elsewhere.

One call per stage, in dataflow order, on seeded random inputs. Inputs and outputs travel in the
box, so that `llvq verify` can tell whether this machine computes what the exporter's did. A stage
that is too large for this machine is skipped, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from safetensors.torch import load_file
from torch import Tensor

from llvq.artifact import Box
from llvq.formats.kv import KV_FORMATS
from llvq.graphs.cost import macs
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import DECODING, CompiledStage, Executable, RunFacts
from llvq.runtime.facts import KEPT, PageSpec

ORDER = (
    "encode_text",
    "encode_image",
    "condition",
    "modulate",
    "refresh",
    "denoise",
    "decode_first",
    "decode",
)
INPUT, OUTPUT = "in.", "out."
SLOTS = ("slot", "kept_slot")
MAX_MACS = 10**12  # Some ten seconds on two cores.
MAX_BYTES = 64 << 20

# Where accumulation order may differ. NVFP4 makes it larger: a value that rounds to the other side
# of an E2M1 boundary moves by a quarter of its block.
LIMIT = 0.05
# What normal K and V that differ by LIMIT differ by once both are rounded to NVFP4 is 0.113.
PAGES, PAGES_LIMIT = "pages", 0.12


@dataclass(frozen=True)
class Checks:
    """Vectors by stage, and why a stage has none."""

    vectors: Mapping[str, Mapping[str, Tensor]]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class CheckResult:
    """One replayed output: relative L2 distance, and whether the bytes are the same."""

    stage: str
    output: str
    error: float
    exact: bool

    @property
    def passed(self) -> bool:
        return self.error <= (PAGES_LIMIT if self.output == PAGES else LIMIT)


def record_checks(executable: Executable, *, seed: int = 0) -> Checks:
    """Call every stage once. What a stage gives is what the next one takes."""
    random = torch.Generator().manual_seed(seed)
    values: dict[str, Tensor] = {}
    vectors, skipped = {}, {}
    for name in (name for name in ORDER if name in executable.stages):
        stage = executable.stages[name]
        work = macs(stage.graph)
        if work > MAX_MACS:
            skipped[name] = f"{work / 1e12:.1f} T multiply-accumulates are too many for the CPU"
            continue
        for spec in stage.inputs:
            if spec.name == "page_table":
                values[spec.name] = _table(spec, executable.facts, name).to(executable.device)
            elif spec.name == "decoded":
                values[spec.name] = _decoded(executable.facts, name).to(executable.device)
            elif spec.name not in values or spec.rate == "state":
                values[spec.name] = _input(spec, random).to(executable.device)
        recorded = _record(stage, values)
        values |= {k.removeprefix(OUTPUT): v for k, v in recorded.items() if k.startswith(OUTPUT)}
        size = sum(tensor.nbytes for tensor in recorded.values())
        if size > MAX_BYTES:
            skipped[name] = f"its vectors would take {size / 2**20:.0f} MiB"
        else:
            vectors[name] = recorded
    return Checks(vectors, skipped)


def _record(stage: CompiledStage, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs that are not all zero, and outputs: returned, or for `refresh` written in place.

    Temporal state is left out of the outputs: it is as large as everything else together.
    """
    before = {spec.name: values[spec.name].clone() for spec in stage.inputs}
    returned = stage(values)
    written = {n: values[n] for n, old in before.items() if not _same(old, values[n])}
    results = {n: t for n, t in (returned or written).items() if ".state." not in n}
    kept = {INPUT + n: t for n, t in before.items() if n == "page_table" or _bytes(t).any()}
    return kept | {OUTPUT + n: t.clone() for n, t in results.items()}


def _table(spec: InputSpec, facts: RunFacts, stage: str) -> Tensor:
    """For `denoise` the slots that `refresh` wrote: page 0, and kept slot 0 if there is one."""
    written = [0, facts.pages.slots][: 1 + bool(facts.pages.keep)]
    slots = written[: max(spec.allowed)] if stage == "denoise" else []
    return torch.tensor(slots, dtype=spec.dtype)


def _decoded(facts: RunFacts, stage: str) -> Tensor:
    """How many latents came before: those of one call, but none before the first."""
    return torch.tensor(0 if stage == DECODING[0] else facts.latents_per_decode)


def _input(spec: InputSpec, random: torch.Generator) -> Tensor:
    """Empty caches and state; else noise."""
    if spec.name.startswith(("pages.", "decode_state.")) or spec.name in SLOTS:
        return torch.zeros(spec.sizes).to(spec.dtype)
    if spec.name == "decode_frames":
        return torch.arange(spec.sizes[0])
    if not spec.dtype.is_floating_point:
        return torch.ones(spec.sizes, dtype=spec.dtype)
    noise = torch.randn(spec.sizes, generator=random)
    if spec.name == "timestep":
        noise = noise.abs() * 300
    return noise.to(spec.dtype)


def replay(executable: Executable, box: Box) -> list[CheckResult]:
    """Run every stage on the vectors of its box and compare."""
    results = []
    for name, stage in executable.stages.items():
        file = f"checks/{name}.safetensors"
        if file in box.manifest["files"]:
            vectors = load_file(box.file(file))
            results += check_stage(stage, vectors, executable.device, executable.facts.pages)
    return results


def check_stage(
    stage: CompiledStage, vectors: Mapping[str, Tensor], device: torch.device, pages: PageSpec
) -> list[CheckResult]:
    """Run one stage on recorded inputs, zeros for those left out, and compare its outputs.

    Pages are compared by the K and V that they hold: one rounding may give a block of NVFP4 another
    scale, and with it other codes, for much the same values.
    """
    recorded = {
        spec.name: vectors[INPUT + spec.name]
        if INPUT + spec.name in vectors
        else torch.zeros(spec.sizes).to(spec.dtype)
        for spec in stage.inputs
    }
    given = {name: tensor.to(device, copy=True) for name, tensor in recorded.items()}
    found = {name: tensor.cpu() for name, tensor in (stage(given) or given).items()}
    wanted = {k.removeprefix(OUTPUT): v for k, v in vectors.items() if k.startswith(OUTPUT)}
    names = [name for name, _, _ in pages.tensors if name != KEPT]
    results = []
    if wanted.keys() & set(names):
        both = [[tensors[name] for name in names] for tensors in (found, recorded | wanted)]
        error = relative_l2(*(_held(tensors, pages.kv_format) for tensors in both))
        exact = all(map(_same, *both))
        results.append(CheckResult(stage.name, PAGES, error, exact))
    return results + [
        CheckResult(stage.name, name, relative_l2(found[name], value), _same(found[name], value))
        for name, value in wanted.items()
        if name not in names
    ]


def _held(pages: Sequence[Tensor], kv_format: str) -> Tensor:
    """The K and V of all slots and layers."""
    layers, _, slots = pages[0].shape[:3]
    read, table = KV_FORMATS[kv_format].read, torch.arange(slots)
    places = product(range(layers), (0, 1))
    return torch.stack([read(pages, *place, table, torch.float32) for place in places])


def relative_l2(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||."""
    a, b = found.double(), wanted.double()
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def _same(found: Tensor, wanted: Tensor) -> bool:
    return torch.equal(_bytes(found), _bytes(wanted))


def _bytes(tensor: Tensor) -> Tensor:
    """The raw bytes: NaN equals itself, and fp8 has no comparison of its own."""
    return tensor.contiguous().flatten().view(torch.uint8)
