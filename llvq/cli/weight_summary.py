"""What quantizing did to the weights: layers, globs, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llvq.compiler import Compiled
    from llvq.sources import TensorSource
    from llvq.weights import WeightRecord


@dataclass(frozen=True)
class WeightSummary:
    """`kept` counts the linears that each exclude glob kept; `parts` maps a part of the model
    (dit, vae, text) to its bytes before and after; `inputs` counts the quantized linears by the
    scale of their input, static or dynamic."""

    quantized: int
    kept: dict[str, int]
    unused_globs: tuple[str, ...]
    parts: dict[str, tuple[int, int]]
    inputs: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_before(self) -> int:
        return sum(before for before, _ in self.parts.values())

    @property
    def bytes_after(self) -> int:
        return sum(after for _, after in self.parts.values())

    @property
    def ratio(self) -> float:
        return self.bytes_before / self.bytes_after if self.bytes_after else 1.0

    def to_dict(self) -> dict[str, Any]:
        totals = {"bytes_before": self.bytes_before, "bytes_after": self.bytes_after}
        return asdict(self) | totals | {"ratio": round(self.ratio, 3)}


def summarize(compiled: Compiled, source: TensorSource) -> WeightSummary:
    """Reads shapes and dtypes, no weight."""
    from llvq.compiler import with_constants
    from llvq.weights import target_specs

    joined = with_constants(compiled, source)
    records = list(compiled.weights.values())
    before = Counter[str]()
    for name in {name for record in records for name in record.sources}:
        before[part_of(name)] += joined.spec(name).nbytes
    after = Counter[str]()
    for record in records:
        after[part_of(record.target)] += sum(
            spec.nbytes for spec in target_specs(record, joined).values()
        )
    books = [book for r in compiled.reports if r.name == "insert-quantize" for book in r.books]
    kept = {glob: count for book in books for glob, count in book.excluded.items()}
    return WeightSummary(
        quantized=sum(len(record.sources) for record in records if record.op == "quantize"),
        kept=kept,
        unused_globs=tuple(g for g in compiled.recipe.linear.exclude if g not in kept),
        parts={part: (size, after[part]) for part, size in sorted(before.items())},
        inputs=input_scales(_record(record) for record in records),
    )


def _record(record: WeightRecord) -> dict[str, Any]:
    facts = [{"input_scale": known.input_scale} for known in record.facts]
    return {"op": record.op, "sources": record.sources, "facts": facts}


def input_scales(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Quantized linears by the scale of their input, from weight records as a manifest has them.

    A linear that nothing is known of is dynamic: its input is measured at every call.
    """
    counts = {"static": 0, "dynamic": 0}
    for record in records:
        if record["op"] == "quantize":
            static = sum(bool(known.get("input_scale")) for known in record.get("facts") or ())
            counts["static"] += static
            counts["dynamic"] += len(record["sources"]) - static
    return counts


def scales_text(counts: Mapping[str, int]) -> str | None:
    """`36 static, 4 dynamic`; None where no linear is quantized."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or None


def part_of(weight: str) -> str:
    """The part of the model that a weight belongs to: dit, vae or text."""
    return weight.partition(".")[0]


def print_summary(summary: WeightSummary) -> None:
    from llvq.cli.table import human, print_fields

    fields: list[tuple[str, object]] = [("linears in NVFP4", summary.quantized)]
    fields.append(("scales of their inputs", scales_text(summary.inputs)))
    fields += [(f"kept by {glob}", count) for glob, count in summary.kept.items()]
    unused = ", ".join(summary.unused_globs) or None
    fields.append(("globs that kept nothing", unused))
    for part, (before, after) in summary.parts.items():
        change = f" -> {human(after)} ({before / after:.2f}x smaller)" if after != before else ""
        fields.append((f"weights of {part}", human(before) + change))
    print_fields(fields)
