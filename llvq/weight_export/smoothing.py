"""What the weights of a program were quantized behind: smoothing factors and low-rank branches.

The manifest names them for each source of a quantized weight; they are weights of the program,
alone or stacked, unless a norm holds them (smoothed_norms.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llvq.artifact import Box
from llvq.artifact.manifest import damaged
from llvq.errors import CheckpointError
from llvq.weight_export.linears import PART, layer_of
from llvq.weight_export.smoothed_norms import factors_in_norms

FACTOR = "pre_quant_scale"
SMOOTHING = (FACTOR, "lora_down", "lora_up")
RESTORED = "restore-facts"
LINEAR, WEIGHT = "aten.linear.default", 1

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Rows [first, first + shape[0]) of a weight of the program."""

    target: str
    first: int
    shape: Shape


def smoothing_of(program: Box, shapes: Mapping[str, Shape]) -> dict[str, Place]:
    """`X.pre_quant_scale`, `X.lora_down` and `X.lora_up` of packed linears X: where each is.

    `shapes`: of the denoiser's tensors. A factor that a norm holds is not among them. Raises
    CheckpointError if the program does not tell whose a factor or a branch is, or has lost one.
    """
    wanted = dict(_wanted(program, shapes))
    places = _places(program, dict(wanted.values()))
    in_norms = factors_in_norms(program)
    for layer, factor in in_norms.items():
        if wanted.get(f"{layer}.{FACTOR}", ("",))[0] != factor:
            raise _untold(program, f"{layer} reads a norm that holds {factor}")
    found = {}
    for name, (source, shape) in wanted.items():
        layer, _, fact = name.rpartition(".")
        if fact == FACTOR and layer in in_norms:
            continue
        if source not in places:
            raise _untold(program, f"{source} is not in it")
        found[name] = Place(*places[source], shape)
    return found


def restored_linears(program: Box) -> list[str]:
    """Linears that stay in bf16 behind a factor or beside a branch that a checkpoint brought.

    Told by the rule that gave them back: a factor may be named after a layer that is packed.
    """
    found: dict[str, None] = {}
    for stage in program.manifest["stages"] if _has_facts(program) else ():
        nodes = {node["name"]: node for node in program.graph(stage)["nodes"]}
        for node in nodes.values():
            if node["target"] == LINEAR and _rule(node) == RESTORED:
                weight = nodes[node["args"][WEIGHT]["node"]]["target"]
                found[layer_of(str(weight))] = None
    return list(found)


def _rule(node: Mapping[str, Any]) -> Any:
    said = node["llvq"]
    return dict(said["dict"]).get("rule") if said else None


def _has_facts(program: Box) -> bool:
    return any(_facts_in(record["sources"]) for record in program.manifest["weights"].values())


def _facts_in(sources: list[str]) -> list[str]:
    """Those of them that are factors or branches of the denoiser."""
    return [s for s in sources if s.startswith(PART) and s.rpartition(".")[2] in SMOOTHING]


def _wanted(program: Box, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, tuple[str, Shape]]]:
    """(`X.<fact>`, (source, shape)) of every fact that the manifest tells of a packed linear."""
    for target, record in program.manifest["weights"].items():
        for source, known in zip(record["sources"], record.get("facts", ()), strict=False):
            layer = layer_of(source)
            if f"{layer}.weight" not in shapes or not _is_known(known):
                raise damaged(f"the facts about {target} are none", where=str(program.path))
            rows, columns = shapes[f"{layer}.weight"]
            rank = known.get("rank", 0)
            sizes = ((columns,), (rank, columns), (rows, rank))
            for fact, size in zip(SMOOTHING, sizes, strict=True):
                if fact in known and 0 not in size:
                    yield f"{layer}.{fact}", (known[fact], size)


def _is_known(known: Any) -> bool:
    if not isinstance(known, dict):
        return False
    names = all(isinstance(known[fact], str) for fact in SMOOTHING if fact in known)
    return names and type(known.get("rank", 0)) is int


def _places(program: Box, shapes: Mapping[str, Shape]) -> dict[str, tuple[str, int]]:
    """Source -> (weight of the program, first row), for factors and branches."""
    found = {}
    for target, record in program.manifest["weights"].items():
        first = 0
        for source in _facts_in(record["sources"]) if record["op"] in ("copy", "concat") else ():
            if source not in shapes:
                raise _untold(program, f"{source} is in it, and no packed linear has it")
            found[source] = (target, first)
            first += shapes[source][0]
    return found


def _untold(program: Box, because: str) -> CheckpointError:
    return CheckpointError(
        "the program does not tell what its weights were quantized behind",
        where=str(program.path),
        because=because,
        fix="quantize the checkpoint again with this version of llvq",
    )
