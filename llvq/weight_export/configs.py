"""What other tools want to be told beside the tensors: config.json, headers, LongLive's dict.

Facts: what diffusers, compressed-tensors, ComfyUI and LongLive's scripts write and look for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llvq.models.config import LONGLIVE2_5B, DitConfig
from llvq.weight_export.modelopt_config import FP4

# Rows of diffusers' table of positions: it fails beyond them, and llvq has no such table.
ROPE_MAX_SEQ_LEN = 1024


def diffusers_config(dit: DitConfig) -> dict[str, Any]:
    """The config of diffusers' WanTransformer3DModel."""
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(dit.patch_size),
        "num_attention_heads": dit.num_heads,
        "attention_head_dim": dit.head_dim,
        "in_channels": dit.in_dim,
        "out_channels": dit.out_dim,
        "text_dim": dit.text_dim,
        "freq_dim": dit.freq_dim,
        "ffn_dim": dit.ffn_dim,
        "num_layers": dit.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": dit.eps,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": ROPE_MAX_SEQ_LEN,
    }


def compressed_tensors_config(ignore: Sequence[str], *, static: bool) -> dict[str, Any]:
    fp4 = {**FP4, "strategy": "tensor_group", "symmetric": True}
    return {
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**fp4, "dynamic": False},
                "input_activations": {**fp4, "dynamic": "local"} if static else None,
                "output_activations": None,
                "format": "nvfp4-pack-quantized",
            }
        },
        "format": "nvfp4-pack-quantized",
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "quant_method": "compressed-tensors",
    }


def comfyui_header(layers: Sequence[str]) -> dict[str, str]:
    """The metadata of the safetensors header that ComfyUI finds packed layers by."""
    named = {layer: {"format": "nvfp4"} for layer in layers}
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": named})}


def longlive_document(
    layers: Sequence[str], plain: Sequence[str], dit: DitConfig, *, source: str, activation: str
) -> Mapping[str, Any]:
    """What LongLive's save_merged_nvfp4_generator.py writes beside `generator`.

    `layers` are the packed linears and `plain` the others, as modules of the wrapper; `source`
    names what they come from; `activation` is the scale rule of activations.
    """
    published = {"model_name": "Wan2.2-TI2V-5B"} if dit == LONGLIVE2_5B.dit else {}
    return {
        "checkpoint_format": "longlive_generator_nvfp4",
        "checkpoint_version": 1,
        "source_generator_ckpt": source,
        "source_lora_ckpt": None,
        **published,
        "merged_lora": True,
        "quantization": {
            "format": "nvfp4",
            "backend": "fouroversix",
            "materialized": True,
            "dtype": "bfloat16",
            "scale_rule": "mse",
            "activation_scale_rule": activation,
            "weight_scale_rule": "mse",
            "gradient_scale_rule": None,
            "te_inference_only": False,
            "te_low_precision_weights": False,
            "te_fallback_to_fouroversix": False,
            "matched_filtered_modules": list(plain),
            "materialized_modules": list(layers),
        },
    }
