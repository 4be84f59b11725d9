"""What quantizing did to the weights: layers, globs, bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llvq.compiler import Compiled
    from llvq.sources import TensorSource


@dataclass(frozen=True)
class WeightSummary:
    """`kept` counts the linears that each exclude glob kept; `parts` maps a part of the model
    (dit, vae, text) to its bytes before and after."""

    quantized: int
    kept: dict[str, int]
    unused_globs: tuple[str, ...]
    parts: dict[str, tuple[int, int]]

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
    )


def part_of(weight: str) -> str:
    """The part of the model that a weight belongs to: dit, vae or text."""
    return weight.partition(".")[0]


def print_summary(summary: WeightSummary) -> None:
    from llvq.cli.table import human, print_fields

    fields: list[tuple[str, object]] = [("linears in NVFP4", summary.quantized)]
    fields += [(f"kept by {glob}", count) for glob, count in summary.kept.items()]
    unused = ", ".join(summary.unused_globs) or None
    fields.append(("globs that kept nothing", unused))
    for part, (before, after) in summary.parts.items():
        change = f" -> {human(after)} ({before / after:.2f}x smaller)" if after != before else ""
        fields.append((f"weights of {part}", human(before) + change))
    print_fields(fields)
