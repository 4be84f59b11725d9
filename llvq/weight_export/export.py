"""Write the denoiser of a program for another tool. No code and no scale changes on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llvq.artifact import Box
from llvq.errors import RecipeError
from llvq.sources import RenamedSource
from llvq.weight_export import configs
from llvq.weight_export.files import Progress, placed, write_folder, write_safetensors, write_torch
from llvq.weight_export.formats import TOOLS, ToolFormat
from llvq.weight_export.program import PART, ProgramSource
from llvq.weight_export.stored import StoredSource

SMOOTHING = ("pre_quant_scale", "lora_down", "lora_up")
# The scale rule by which LongLive does what our rule does to activations.
ACTIVATION_RULES = {"four_over_six": "mse", "max": "static_6"}


@dataclass(frozen=True)
class Exported:
    """`layers`: packed linears, under the tool's names; `plain`: those in bf16; `notes`: words."""

    layers: tuple[str, ...]
    plain: tuple[str, ...]
    notes: tuple[str, ...]


def export_weights(program: Box, format: str, path: Path, *, progress: Progress) -> Exported:
    """Write the weights of `program` as the tool named by `format` reads them.

    Raises RecipeError for what the format cannot hold, CheckpointError for a program that has no
    packed weights or not all of them, OutputError; nothing is left behind.
    """
    tool = TOOLS[format]
    check_smoothing(program, format)
    source = ProgramSource(program)
    check_carried(program, source, format)
    names = {tool.names(name) or name: name for name in source.names()}
    if not tool.with_input_scales:
        names = {new: old for new, old in names.items() if not old.endswith(".input_scale")}
    stored = StoredSource(RenamedSource(source, names), tool.layout, full=tool.full)
    layers = tuple(stored.layers())
    plain = tuple(_plain_linears(source, names))
    static = any(name.endswith(".input_scale") for name in names)
    with placed(path) as result:
        if tool.container == "folder":
            config = configs.diffusers_config(source.config)
            config["quantization_config"] = QUANTIZATION[format](plain, static=static)
            write_folder(result, stored, config, progress)
        elif tool.container == "safetensors":
            header = configs.comfyui_header(layers) if format == "comfyui" else {}
            write_safetensors(result, stored, header, progress)
        else:
            rule = program.manifest["recipe"]["linear"]["activation_rule"]
            document = configs.longlive_document(
                layers,
                plain,
                source.config,
                source=f"llvq program {program.id}",
                activation=ACTIVATION_RULES.get(rule, "mse"),
            )
            write_torch(result, stored, document, progress)
    return Exported(layers, plain, tuple(_notes(program, source, stored, tool)))


QUANTIZATION = {
    "modelopt": configs.modelopt_config,
    "compressed-tensors": configs.compressed_tensors_config,
}


def check_smoothing(program: Box, format: str) -> None:
    """Refuse weights that are not whole without something else. Raises RecipeError."""
    used = [s for r in program.manifest["weights"].values() for s in r["sources"]]
    for fact in SMOOTHING:
        if found := next((s for s in used if s.startswith(PART) and s.endswith(f".{fact}")), None):
            raise RecipeError(
                f"--format {format} cannot hold {found.removeprefix(PART)}",
                where=str(program.path),
                because="the weights were quantized for a smoothed input or beside a low-rank "
                "branch, and are wrong without it",
                fix="quantize with --calibrate modelopt:max, or without --calibrate",
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
    if TOOLS[format].without_input_scales == "refused" and not _static(source):
        raise RecipeError(
            f"--format {format} needs static input scales",
            where=str(program.path),
            because="the tool scales activations by numbers from the file, the program at each "
            "call",
            fix="llvq quantize MODEL --calibrate modelopt:max",
        )


def _static(source: ProgramSource) -> bool:
    return any(name.endswith(".input_scale") for name in source.names())


def _plain_linears(source: ProgramSource, names: dict[str, str]) -> Sequence[str]:
    """Linears that stay in bf16, as the tool names them."""
    return [
        new.removesuffix(".weight")
        for new, old in names.items()
        if old.endswith(".weight") and len(source.spec(old).shape) == 2 and not source.packed(old)
    ]


def _notes(
    program: Box, source: ProgramSource, stored: StoredSource, tool: ToolFormat
) -> Sequence[str]:
    """What the tool will do differently, in sentences."""
    notes, rule = [], program.manifest["recipe"]["linear"]["activation_rule"]
    if not _static(source) and tool.without_input_scales == "weights alone":
        notes.append(
            "activations stay in BF16 there: the program scales them at each call, and the format "
            "wants static scales (llvq quantize --calibrate)"
        )
    if _static(source) and not tool.with_input_scales:
        notes.append("static input scales are left out: the tool scales activations at each call")
    if tool.container == "torch" and rule not in ACTIVATION_RULES:
        notes.append(f"activations are quantized by rule mse there, by {rule} in the program")
    if tool.container == "folder":
        notes.append(
            "q, k and v have a global scale each, as here: a server that stacks them and takes "
            "one for all would be wrong (diffusers and SGLang keep Wan's apart)"
        )
    if off := stored.inexact():
        notes.append(
            f"{off} of {len(stored.layers())} global scales have no exact reciprocal in fp32: the "
            "tool sees them one part in ten million off"
        )
    return notes
