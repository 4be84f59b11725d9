"""How the tools that write NVFP4 weights lay them out: one table, read by readers and writers.

A linear `X` of N outputs and K inputs is a few tensors `X.<suffix>`. All layouts hold the same
numbers: E2M1 codes, one E4M3 scale per 16 of them, one fp32 scale for all; they differ in names,
in the order of nibbles and scales, and in what the fp32 scale is written as.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llvq.formats.nvfp4 import E2M1_MAX, E4M3_MAX, FOUR_OVER_SIX_SCALE_MAX

Meaning = Literal["decode", "reciprocal", "amax"]
ScaleOrder = Literal["linear", "padded", "flat", "blocked"]

FULL_RANGE = E2M1_MAX * E4M3_MAX
# What the scale rule of a fouroversix file divides the largest magnitude by.
RULE_RANGE: Mapping[str, float] = MappingProxyType(
    {
        "static_6": FULL_RANGE,
        "static_4": 4.0 * E4M3_MAX,
        "mse": E2M1_MAX * FOUR_OVER_SIX_SCALE_MAX,
        "mae": E2M1_MAX * FOUR_OVER_SIX_SCALE_MAX,
        "abs_max": E2M1_MAX * FOUR_OVER_SIX_SCALE_MAX,
    }
)


@dataclass(frozen=True)
class Layout:
    """One layout. Suffixes follow the name of the linear and a dot.

    `codes`: uint8 [N, K/2], N and K rounded up to `pad`; the even element is in the nibble
    `even_nibble`. `scales`: e4m3, in `scale_order`:
      linear   [N, K/16]
      padded   [N up to 128, K/16 up to 4 or 16], in 128x4 tiles as tensor cores read them
      blocked  the same bytes seen as [32 * tiles, 16 * tiles]
      flat     the same bytes in one dimension, over the padded N and K
    `global_scale`: fp32 of shape `scalar`; `global_is` says whether it multiplies (decode), divides
    (reciprocal), or is the largest magnitude (amax; the file names the rule that it is divided by).
    `inputs`: where the scale of the activations may be, the first that is there counts; an amax
    is divided by 6 * 448. `facts`: suffix -> name in llvq.calibration. `sizes`: int32
    [N, K, padded N, padded K]. `also`: what is known and not needed.
    """

    name: str
    title: str
    codes: str = "weight"
    scales: str = "weight_scale"
    global_scale: str = "weight_scale_2"
    global_is: Meaning = "decode"
    scalar: tuple[int, ...] = ()
    even_nibble: Literal["low", "high"] = "low"
    scale_order: ScaleOrder = "linear"
    pad: tuple[int, int] = (1, 1)
    inputs: tuple[tuple[str, Meaning], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    sizes: str | None = None
    also: tuple[str, ...] = ()

    @property
    def suffixes(self) -> frozenset[str]:
        """Every suffix of the layout but that of the codes."""
        named = (self.scales, self.global_scale, *self.also, *(s for s, _ in self.inputs))
        sizes = () if self.sizes is None else (self.sizes,)
        return frozenset((*named, *sizes, *(suffix for suffix, _ in self.facts)))


SMOOTHING = ("pre_quant_scale", "pre_quant_scale")
LOW_RANK = (("svdquant_lora_a", "lora_down"), ("svdquant_lora_b", "lora_up"))

MODELOPT = Layout(
    "modelopt",
    "ModelOpt NVFP4",
    inputs=(("input_scale", "decode"),),
    facts=(SMOOTHING, *LOW_RANK),
)
MODELOPT_SWIZZLED = Layout(
    "modelopt-swizzled",
    "ModelOpt NVFP4, scales in tiles",
    scale_order="padded",
    pad=(16, 1),
    inputs=(("input_scale", "decode"),),
    facts=(SMOOTHING, *LOW_RANK),
)
COMPRESSED_TENSORS = Layout(
    "compressed-tensors",
    "compressed-tensors nvfp4-pack-quantized",
    codes="weight_packed",
    global_scale="weight_global_scale",
    global_is="reciprocal",
    scalar=(1,),
    inputs=(("input_global_scale", "reciprocal"),),
)
COMFYUI = Layout(
    "comfyui",
    "ComfyUI NVFP4",
    even_nibble="high",
    scale_order="padded",
    pad=(16, 16),
    inputs=(("input_scale", "decode"),),
    facts=(SMOOTHING,),
    also=("comfy_quant",),
)
LIGHTX2V = Layout(
    "lightx2v",
    "LightX2V NVFP4",
    global_scale="weight_global_scale",
    global_is="reciprocal",
    scale_order="padded",
    inputs=(("input_global_scale", "reciprocal"), ("input_absmax", "amax")),
    also=("alpha",),
)
TORCHAO = Layout(
    "torchao",
    "torchao NVFP4",
    codes="_weight_qdata",
    scales="_weight_scale",
    global_scale="_weight_per_tensor_scale",
    scale_order="blocked",
    inputs=(("_weight_act_per_tensor_scale", "decode"),),
)
LONGLIVE_4O6 = Layout(
    "longlive-4o6",
    "LongLive-2.0 four-over-six",
    codes="quantized_weight_values",
    scales="quantized_weight_scale_factors",
    global_scale="quantized_weight_amax",
    global_is="amax",
    scalar=(1,),
    scale_order="flat",
    pad=(128, 64),
    sizes="quantized_weight_metadata",
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            LONGLIVE_4O6,
            MODELOPT,
            MODELOPT_SWIZZLED,
            COMPRESSED_TENSORS,
            COMFYUI,
            LIGHTX2V,
            TORCHAO,
        )
    }
)
