"""The files that other tools read: for each its layout, its names, its container, its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llvq.checkpoints.packed_layouts import (
    COMFYUI,
    COMPRESSED_TENSORS,
    FULL_RANGE,
    LIGHTX2V,
    LONGLIVE_4O6,
    MODELOPT,
    RULE_RANGE,
    Layout,
)
from llvq.checkpoints.wan_names import to_diffusers


@dataclass(frozen=True)
class ToolFormat:
    """`names`: Wan's name -> the tool's. `container`: a folder with config.json, or one file.

    `without_input_scales`: what becomes of a program that scales activations at every call: the
    tool does so too, it runs the weights alone in NVFP4, or it cannot. `with_input_scales`: whether
    static ones are written. `next`: what to type or set in the tool; {path} is the file or folder.
    """

    layout: Layout
    names: Callable[[str], str | None]
    container: Literal["folder", "safetensors", "torch"]
    without_input_scales: Literal["dynamic", "weights alone", "refused"]
    next: str
    with_input_scales: bool = True
    full: float = FULL_RANGE


def as_it_is(name: str) -> str:
    return name


def in_wrapper(name: str) -> str:
    """LongLive saves the module that wraps the model."""
    return f"model.{name}"


TOOLS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        "modelopt": ToolFormat(
            MODELOPT,
            to_diffusers,
            "folder",
            "weights alone",
            "put {path} in place of `transformer` in the folder of the diffusers model",
        ),
        "compressed-tensors": ToolFormat(
            COMPRESSED_TENSORS,
            to_diffusers,
            "folder",
            "weights alone",
            "put {path} in place of `transformer` in the folder of the diffusers model",
        ),
        "comfyui": ToolFormat(
            COMFYUI,
            as_it_is,
            "safetensors",
            "dynamic",
            "cp {path} ComfyUI/models/diffusion_models/   # then choose it in Load Diffusion Model",
        ),
        "lightx2v": ToolFormat(
            LIGHTX2V,
            as_it_is,
            "safetensors",
            "refused",
            'in the run\'s config: "dit_quantized": true, "dit_quant_scheme": "nvfp4", '
            '"dit_quantized_ckpt": "{path}"',
        ),
        "longlive-4o6": ToolFormat(
            LONGLIVE_4O6,
            in_wrapper,
            "torch",
            "dynamic",
            "in the inference yaml: generator_ckpt: {path}, model_quant: true, "
            "model_quant_scale_rule: mse, model_quant_use_transformer_engine: false",
            with_input_scales=False,
            full=RULE_RANGE["mse"],
        ),
    }
)
