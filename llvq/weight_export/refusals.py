"""What a file of another tool could not hold of a program, refused by name and count."""

from __future__ import annotations

from collections.abc import Sequence

from llvq.artifact import Box
from llvq.errors import RecipeError
from llvq.weight_export.formats import TOOLS
from llvq.weight_export.program import ProgramSource
from llvq.weight_export.smoothing import SMOOTHING, restored_linears

WORDS = {
    "pre_quant_scale": "smoothing factors",
    "lora_down": "low-rank branches",
    "lora_up": "low-rank branches",
}


def check_restored(program: Box, format: str) -> None:
    """Refuse linears in bf16 that are not whole without something else. Raises RecipeError."""
    if found := restored_linears(program):
        raise RecipeError(
            f"--format {format} cannot hold {_named(found)} in bf16",
            where=str(program.path),
            because="the checkpoint had them in NVFP4, behind smoothing factors or beside low-rank "
            "branches, and files have these beside packed weights alone",
            fix="quantize with a recipe that does not exclude them",
        )


def check_carried(program: Box, source: ProgramSource, format: str) -> None:
    """Refuse what the file could not hold. Raises RecipeError."""
    if not any(source.packed(name) for name in source.names()):
        raise RecipeError(
            "the program has no weight in NVFP4",
            where=str(program.path),
            because=f"its recipe is {program.manifest['recipe']['name']}",
            fix="llvq quantize MODEL   # with the default recipe",
        )
    _check_smoothing(program, source, format)
    static = any(name.endswith(".input_scale") for name in source.names())
    if TOOLS[format].without_input_scales == "refused" and not static:
        raise RecipeError(
            f"--format {format} needs static input scales",
            where=str(program.path),
            because="the tool scales activations by numbers from the file, the program at each "
            "call",
            fix="llvq quantize MODEL --calibrate modelopt:max",
        )


def _check_smoothing(program: Box, source: ProgramSource, format: str) -> None:
    layers: dict[str, list[str]] = {fact: [] for fact in SMOOTHING}
    for name in source.names():
        layer, _, fact = name.rpartition(".")
        if fact in layers:
            layers[fact].append(layer)
    used = {fact for fact in SMOOTHING if layers[fact]}
    lost = {WORDS[f]: layers[f] for f in SMOOTHING if f in used - _held(format)}
    if not lost:
        return
    fitting = [name for name in TOOLS if used <= _held(name)]
    parts = [f"the {word} of {_named(names)}" for word, names in lost.items()]
    raise RecipeError(
        f"--format {format} cannot hold {' and '.join(parts)}",
        where=str(program.path),
        because="the weights were quantized for a smoothed input or beside a low-rank branch, and "
        "are wrong without it",
        fix=f"--format {' or '.join(fitting)}, or quantize with --calibrate modelopt:max",
    )


def _held(format: str) -> set[str]:
    return {fact for _, fact in TOOLS[format].layout.facts}


def _named(layers: Sequence[str]) -> str:
    """`20 linears (blocks.0.self_attn.q, ...)`."""
    if len(layers) == 1:
        return layers[0]
    return f"{len(layers)} linears ({layers[0]}, ...)"
