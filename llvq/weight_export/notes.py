"""What a tool will do differently with the file, and what of it the tool must know, in words."""

from __future__ import annotations

from collections.abc import Iterator

from llvq.artifact import Box
from llvq.weight_export.formats import ToolFormat
from llvq.weight_export.program import ProgramSource
from llvq.weight_export.smoothed_norms import smoothed_norms
from llvq.weight_export.smoothing import FACTOR
from llvq.weight_export.stored import StoredSource

# The scale rule by which LongLive does what our rule does to activations.
ACTIVATION_RULES = {"four_over_six": "mse", "max": "static_6"}


def notes(
    program: Box, source: ProgramSource, stored: StoredSource, tool: ToolFormat
) -> Iterator[str]:
    """Notes about a file of `stored` for `tool`, made from `source`."""
    yield from _about_activations(program, source, tool)
    yield from _about_smoothing(program, source)
    if tool.container == "folder":
        yield (
            "q, k and v have a global scale each, as here: a server that stacks them and takes "
            "one for all would be wrong (diffusers and SGLang keep Wan's apart)"
        )
    if off := stored.inexact():
        yield (
            f"{off} of {len(stored.layers())} global scales have no exact reciprocal in fp32: the "
            "tool sees them one part in ten million off"
        )


def _about_activations(program: Box, source: ProgramSource, tool: ToolFormat) -> Iterator[str]:
    rule = program.manifest["recipe"]["linear"]["activation_rule"]
    static = any(name.endswith(".input_scale") for name in source.names())
    if not static and tool.without_input_scales == "weights alone":
        yield (
            "activations stay in BF16 there: the program scales them at each call, and the format "
            "wants static scales (llvq quantize --calibrate)"
        )
    if static and not tool.with_input_scales:
        yield "static input scales are left out: the tool scales activations at each call"
    if tool.container == "torch" and rule not in ACTIVATION_RULES:
        yield f"activations are quantized by rule mse there, by {rule} in the program"


def _about_smoothing(program: Box, source: ProgramSource) -> Iterator[str]:
    facts = [name.rpartition(".")[2] for name in source.names()]
    factors, branches = facts.count(FACTOR), facts.count("lora_down")
    parts = [f"{factors} linears multiply their input by a pre_quant_scale"] if factors else []
    parts += [f"{branches} linears add a low-rank branch"] if branches else []
    if parts:
        yield f"{' and '.join(parts)}: with a loader that leaves that out the video is noise"
    if norms := {target.rpartition(".")[0] for target in smoothed_norms(program)}:
        yield (
            f"{len(norms)} norms are written with the smoothing factor of the linear behind them, "
            "which has none of its own: do not mix them with those of the checkpoint"
        )
