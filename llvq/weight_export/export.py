"""Write the denoiser of a program for another tool. No code and no scale changes on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llvq.artifact import Box
from llvq.sources import RenamedSource, TensorSource
from llvq.weight_export import configs
from llvq.weight_export.files import Progress, placed, write_folder, write_safetensors, write_torch
from llvq.weight_export.formats import TOOLS
from llvq.weight_export.modelopt_config import Beside, modelopt_config
from llvq.weight_export.notes import ACTIVATION_RULES, notes
from llvq.weight_export.program import ProgramSource
from llvq.weight_export.refusals import check_carried, check_restored
from llvq.weight_export.smoothing import FACTOR
from llvq.weight_export.stored import StoredSource


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
    check_restored(program, format)
    source = ProgramSource(program)
    check_carried(program, source, format)
    names = {tool.names(name) or name: name for name in source.names()}
    if not tool.with_input_scales:
        names = {new: old for new, old in names.items() if not old.endswith(".input_scale")}
    renamed = RenamedSource(source, names)
    stored = StoredSource(renamed, tool.layout, full=tool.full)
    layers = tuple(stored.layers())
    plain = tuple(_plain_linears(source, names))
    static = any(name.endswith(".input_scale") for name in names)
    with placed(path) as result:
        if tool.container == "folder":
            config = configs.diffusers_config(source.config)
            words = _quantization(format, plain, layers, renamed, static=static)
            config["quantization_config"] = words
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
    return Exported(layers, plain, tuple(notes(program, source, stored, tool)))


def _quantization(
    format: str, plain: Sequence[str], layers: Sequence[str], source: TensorSource, *, static: bool
) -> dict[str, Any]:
    """`quantization_config` of a folder; `source` has the names of the tool."""
    if format == "modelopt":
        return modelopt_config(plain, _beside(layers, source), static=static)
    return configs.compressed_tensors_config(plain, static=static)


def _beside(layers: Sequence[str], source: TensorSource) -> dict[str, Beside]:
    """What is stored beside each packed linear."""
    names = set(source.names())
    ranks = {n: source.spec(n).shape[0] for n in names if n.endswith(".lora_down")}
    return {
        layer: Beside(f"{layer}.{FACTOR}" in names, ranks.get(f"{layer}.lora_down", 0))
        for layer in layers
    }


def _plain_linears(source: ProgramSource, names: dict[str, str]) -> Sequence[str]:
    """Linears that stay in bf16, as the tool names them."""
    return [
        new.removesuffix(".weight")
        for new, old in names.items()
        if old.endswith(".weight") and len(source.spec(old).shape) == 2 and not source.packed(old)
    ]
