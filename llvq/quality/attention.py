"""The error of attention over quantized pages, on the queries, keys and values of the BF16 run.

Behind every attention of the BF16 program that reads pages, a probe packs the same history in the
program's format and attends again. Every chunk of the history is packed, also those that a recipe
keeps; the arithmetic is the reference's, whatever the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llvq.dialect import paged_attention
from llvq.formats.kv import KV_FORMATS
from llvq.graphs.write import module_path
from llvq.matcher import arguments
from llvq.quality.calls import CallErrors
from llvq.quality.metrics import NOTHING, Energies, energies
from llvq.quality.pair import Pair
from llvq.runtime.executable import Executable

PAGED = torch.ops.llvq.paged_attention.default
UNPACKED = "none"


@dataclass
class AttentionError:
    """The self-attention of one block. It has no weight of its own."""

    name: str
    output: CallErrors = field(default_factory=CallErrors)
    kind: str = "self_attn, pages"
    weight: Energies = NOTHING


class AttentionProbe(nn.Module):
    """Stands behind attention over plain pages and measures what packed ones would have given."""

    def __init__(self, error: AttentionError, stage: str, kv_format: str) -> None:
        super().__init__()
        self.error, self.stage, self.kv_format = error, stage, kv_format

    def forward(self, reference: Tensor, given: dict[str, Any]) -> None:
        """given: the arguments of the call. The first chunk has no history, so nothing to lose."""
        found = NOTHING
        if given["table"].numel():
            packed, table = self._packed(given["k"], given["pages"], given["table"], given["layer"])
            same = {"pages": packed, "table": table, "layer": 0, "kv_format": self.kv_format}
            found = energies(reference, paged_attention.reference(**{**given, **same}))
        self.error.output.add(self.stage, found)

    def _packed(
        self, k: Tensor, pages: Sequence[Tensor], table: Tensor, layer: int
    ) -> tuple[list[Tensor], Tensor]:
        """A pool of this layer alone with the chunks of the table, and the table for it."""
        kv, slots = KV_FORMATS[self.kv_format], torch.arange(len(table), device=k.device)
        tokens, heads, dim = k.shape[1:]
        specs = kv.specs(1, len(table), tokens, heads, dim, k.dtype)
        pool = [torch.zeros(shape, dtype=dtype, device=k.device) for _, dtype, shape in specs]
        for which in (0, 1):
            history = KV_FORMATS[UNPACKED].read(pages, layer, which, table, k.dtype)
            for slot, chunk in zip(slots, history.split(tokens), strict=True):
                kv.write(pool, 0, which, slot, chunk)
        return pool, slots


def add_attention_probes(executable: Executable, pair: Pair) -> list[AttentionError]:
    """Put a probe behind every attention over pages, in place. None where pages are not packed."""
    kv_format = pair.recipe.kv.format
    if kv_format == UNPACKED:
        return []
    errors: dict[int, AttentionError] = {}
    for name, stage in executable.stages.items():
        graph = stage.graph.graph
        for number, node in enumerate(graph.find_nodes(op="call_function", target=PAGED)):
            given = arguments(node)
            layer = given["layer"]
            error = errors.setdefault(layer, AttentionError(module_path(node)))
            probe = f"attention_probe_{number}"
            stage.graph.add_submodule(probe, AttentionProbe(error, name, kv_format))
            with graph.inserting_after(node):
                graph.call_module(probe, (node, given))
        stage.graph.recompile()
    return [errors[layer] for layer in sorted(errors)]
