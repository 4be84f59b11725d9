"""What quantizing did to the weights: layers, globs, bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llvq.compiler import Compiled
    from llvq.sources import TensorSource


@dataclass(frozen=True)
class WeightSummary:
    """`kept` counts the linears that each exclude glob kept; `bytes` are (before, after)."""

    quantized: int
    kept: dict[str, int]
    unused_globs: tuple[str, ...]
    bytes_before: int
    bytes_after: int

    @property
    def ratio(self) -> float:
        return self.bytes_before / self.bytes_after if self.bytes_after else 1.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": round(self.ratio, 3)}


def summarize(compiled: Compiled, source: TensorSource) -> WeightSummary:
    """Reads shapes and dtypes, no weight."""
    from llvq.compiler import with_constants
    from llvq.weights import target_specs

    joined = with_constants(compiled, source)
    records = list(compiled.weights.values())
    used = {name for record in records for name in record.sources}
    made = [spec for record in records for spec in target_specs(record, joined).values()]
    books = [book for r in compiled.reports if r.name == "insert-quantize" for book in r.books]
    kept = {glob: count for book in books for glob, count in book.excluded.items()}
    return WeightSummary(
        quantized=sum(len(record.sources) for record in records if record.op == "quantize"),
        kept=kept,
        unused_globs=tuple(g for g in compiled.recipe.linear.exclude if g not in kept),
        bytes_before=sum(joined.spec(name).nbytes for name in used),
        bytes_after=sum(spec.nbytes for spec in made),
    )


def print_summary(summary: WeightSummary) -> None:
    from llvq.cli.table import human, print_fields

    before, after = human(summary.bytes_before), human(summary.bytes_after)
    fields = [("linears in NVFP4", summary.quantized)]
    fields += [(f"kept by {glob}", count) for glob, count in summary.kept.items()]
    unused = ", ".join(summary.unused_globs) or None
    print_fields(
        [
            *fields,
            ("globs that kept nothing", unused),
            ("weights", f"{before} -> {after} ({summary.ratio:.2f}x smaller)"),
        ]
    )
