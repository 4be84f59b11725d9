"""Which tool has packed a checkpoint, told from what is in it and never from its name.

ModelOpt and ComfyUI give their tensors the same names and differ in the order of nibbles and
scales, so there a marker must tell, or a shape that only one of them can have; a file that leaves
it open is refused, for a wrong guess would decode to noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from llvq.checkpoints.checkpoint import json_beside
from llvq.checkpoints.packed_layer import scale_shapes
from llvq.checkpoints.packed_layouts import (
    COMFYUI,
    FULL_RANGE,
    LAYOUTS,
    MODELOPT,
    MODELOPT_SWIZZLED,
    RULE_RANGE,
    Layout,
)
from llvq.errors import CheckpointError, RecipeError
from llvq.sources import TensorSource

ALIKE = (MODELOPT, MODELOPT_SWIZZLED, COMFYUI)


def recognise(
    source: TensorSource, metadata: Mapping[str, object], path: Path, *, asked: str | None
) -> Layout | None:
    """The layout of the packed linears in a source; None if there are none.

    Raises CheckpointError if tensors of several layouts are there, or if they leave it open and
    `asked` does not say it.
    """
    if asked is not None and asked not in LAYOUTS:
        raise RecipeError(f"unknown layout {asked!r}", fix=f"use one of {', '.join(LAYOUTS)}")
    found = {layout.name: first for layout in _distinct() if (first := _first(source, layout))}
    if len(found) > 1:
        shown = "; ".join(f"{name} is of {LAYOUTS[key].title}" for key, name in found.items())
        raise CheckpointError(
            f"{path.name} mixes layouts of NVFP4",
            where=str(path),
            because=shown,
            fix="export the checkpoint again with one tool",
        )
    if not found and asked is None:
        return None
    if not found:
        raise CheckpointError(
            f"{path.name} holds no linear packed in NVFP4",
            where=str(path),
            because=f"no tensor has a name of {LAYOUTS[str(asked)].title}, or of another layout",
            fix="leave out --layout",
        )
    layout = LAYOUTS[next(iter(found))]
    candidates = _told_apart(source, metadata, path) if layout in ALIKE else [layout]
    return _chosen(candidates, asked, path)


def _distinct() -> Iterator[Layout]:
    """One layout for each set of names."""
    yield from (layout for layout in LAYOUTS.values() if layout not in ALIKE[1:])


def _first(source: TensorSource, layout: Layout) -> str | None:
    """The first tensor that only this set of names has."""
    if layout.codes != "weight":
        return next((n for n in source.names() if n.rpartition(".")[2] == layout.codes), None)
    everything = set(source.names())
    marks = (n for n in source.names() if n.rpartition(".")[2] == layout.global_scale)
    return next((n for n in marks if f"{n.rpartition('.')[0]}.{layout.codes}" in everything), None)


def _told_apart(source: TensorSource, metadata: Mapping[str, object], path: Path) -> list[Layout]:
    """Which of ModelOpt's and ComfyUI's layouts the file may be in."""
    shapes = list(_shapes(source))
    fitting = [layout for layout in ALIKE if shapes and all(_fits(layout, *s) for s in shapes)]
    if any(name.endswith(".comfy_quant") for name in source.names()):
        return [COMFYUI]
    if _says_modelopt(metadata.get("quantization_config")):
        return [layout for layout in fitting if layout is not COMFYUI] or [MODELOPT_SWIZZLED]
    if "_quantization_metadata" in metadata:
        return [COMFYUI]
    if _says_modelopt(json_beside(path, "config.json").get("quantization_config")):
        return [MODELOPT]
    if _says_modelopt(json_beside(path, "hf_quant_config.json")):
        return [MODELOPT]
    return fitting or [MODELOPT]


def _says_modelopt(config: object) -> bool:
    """`config`: a quantization_config, as an object or as JSON text."""
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError:
            return False
    if not isinstance(config, dict):
        return False
    producer = config.get("producer")
    made_by = producer.get("name") if isinstance(producer, dict) else None
    return "modelopt" in (config.get("quant_method"), made_by)


def _shapes(source: TensorSource) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(shape of the codes, shape of the scales) of what looks like a packed linear."""
    names = set(source.names())
    for name in source.names():
        layer, _, suffix = name.rpartition(".")
        scales = f"{layer}.{MODELOPT.scales}"
        if suffix == MODELOPT.codes and scales in names:
            spec = source.spec(name)
            if spec.dtype == torch.uint8 and len(spec.shape) == 2:
                yield spec.shape, source.spec(scales).shape


def _fits(layout: Layout, codes: tuple[int, ...], scales: tuple[int, ...]) -> bool:
    return scales in scale_shapes(layout, (codes[0], 2 * codes[1]))


def _chosen(candidates: Iterable[Layout], asked: str | None, path: Path) -> Layout:
    names = [layout.name for layout in candidates]
    if asked is not None:
        if asked in names or all(LAYOUTS[name] in ALIKE for name in (asked, *names)):
            return LAYOUTS[asked]
        raise CheckpointError(
            f"{path.name} is not in layout {asked}",
            where=str(path),
            because=f"its tensors have the names of {', '.join(names)}",
            fix="leave out --layout",
        )
    if len(names) == 1:
        return LAYOUTS[names[0]]
    raise CheckpointError(
        f"{path.name} is packed in NVFP4, and does not say by which tool",
        where=str(path),
        because=f"names and shapes fit {', '.join(names)}, which differ in the order of the bytes",
        fix=f"say it: --layout {' or --layout '.join(names)}",
    )


def full_range(layout: Layout, metadata: Mapping[str, object], path: Path) -> float:
    """What an amax is divided by to give the decode scale. Raises CheckpointError if unknown."""
    if layout.global_is != "amax":
        return FULL_RANGE
    for key in ("quantization.weight_scale_rule", "quantization.scale_rule"):
        if key in metadata:
            rule = metadata[key]
            if isinstance(rule, str) and rule in RULE_RANGE:
                return RULE_RANGE[rule]
            raise _unknown_rule(f"{key} = {rule!r} is none of {', '.join(RULE_RANGE)}", path)
    raise _unknown_rule("there is neither quantization.weight_scale_rule nor .scale_rule", path)


def _unknown_rule(because: str, path: Path) -> CheckpointError:
    return CheckpointError(
        f"the scale rule of {path.name} is unknown",
        where=str(path),
        because=f"{because}, and amax is divided by 1536 or 2688 depending on it",
        fix="write the file with LongLive's save_merged_nvfp4_generator.py, which names its rule",
    )
