"""Every kind of file that llvq reads or writes, in words: `docs/checkpoints.md` is made of this.

A test holds that all packed layouts and all values of `llvq export --format` are here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """`reads` and `writes`: how it is read or written, empty if not. `layout`: a packed layout.

    `held_by`: whose code says that reader and writer are right.
    """

    name: str
    part: str
    made_by: str
    recognised_by: str
    reads: str
    writes: str
    held_by: str
    layout: str | None = None


MODEL = "`llvq quantize MODEL`"
BESIDE = "beside MODEL, or `--vae`"
TEXT = "beside MODEL, or `--text-encoder`"

DENOISERS = (
    Kind(
        "`model_bf16.pt`",
        "denoiser",
        "LongLive-2.0, `merge_lora_generator.py`",
        "`generator`, names `model.*` in Wan's words",
        MODEL,
        "",
        "goldens of the public reference",
    ),
    Kind(
        "`model_te.pt`",
        "denoiser",
        "LongLive-2.0, `save_merged_nvfp4_generator.py` for TransformerEngine",
        "as `model_bf16.pt`: its tensors are BF16",
        MODEL,
        "",
        "the names that its script writes",
    ),
    Kind(
        "training checkpoint of stage 1",
        "denoiser",
        "LongLive-2.0's trainer, with FSDP, compile or checkpoint wrappers",
        "`generator` or `generator_ema`",
        f"{MODEL}, `--use-ema`",
        "",
        "the names that its trainer writes",
    ),
    Kind(
        "generator LoRA",
        "denoiser",
        "LongLive-2.0's stage 2, PEFT",
        "`generator_lora`, or names with `lora_A` and `lora_B`",
        f"{MODEL} `--lora FILE`, merged",
        "",
        "PEFT's own merge",
    ),
    Kind(
        "Wan2.2-TI2V-5B, original",
        "denoiser",
        "Wan",
        "Wan's names, shards with an index",
        MODEL,
        "",
        "goldens of the public reference",
    ),
    Kind(
        "Wan2.2-TI2V-5B, diffusers",
        "denoiser",
        "diffusers",
        "diffusers' names (`condition_embedder`, `attn1.to_q`)",
        MODEL,
        "",
        "diffusers' WanTransformer3DModel",
    ),
    Kind(
        "Self-Forcing, LongLive-1 (Wan2.1-1.3B)",
        "denoiser",
        "their trainers; Wan; diffusers",
        "16 latent channels; names as above",
        MODEL,
        "",
        "diffusers' WanTransformer3DModel, the published loop",
    ),
)
PACKED = (
    Kind(
        "`model_4o6.pt`",
        "denoiser in NVFP4",
        "LongLive-2.0, fouroversix",
        "`quantized_weight_values`; the scale rule in `quantization`",
        MODEL,
        "`--format longlive-4o6`",
        "vectors of the fouroversix reference",
        layout="longlive-4o6",
    ),
    Kind(
        "ModelOpt export",
        "denoiser in NVFP4",
        "ModelOpt, Hugging Face and diffusers form",
        "`weight_scale_2` and linear scales, or `quantization_config` in config.json",
        MODEL,
        "`--format modelopt`",
        "ModelOpt's NVFP4QTensor, diffusers' bfl reader",
        layout="modelopt",
    ),
    Kind(
        "ModelOpt single file, swizzled",
        "denoiser in NVFP4",
        "ModelOpt with `enable_swizzle_layout`",
        "`quantization_config` in the header and padded scales; else `--layout`",
        MODEL,
        "",
        "ModelOpt's padding and swizzle",
        layout="modelopt-swizzled",
    ),
    Kind(
        "`nvfp4-pack-quantized`",
        "denoiser in NVFP4",
        "compressed-tensors, llm-compressor",
        "`weight_packed`",
        MODEL,
        "`--format compressed-tensors`",
        "compressed-tensors",
        layout="compressed-tensors",
    ),
    Kind(
        "ComfyUI NVFP4",
        "denoiser in NVFP4",
        "comfy-kitchen and converters",
        "`comfy_quant`, or `_quantization_metadata` without ModelOpt's config; else `--layout`",
        MODEL,
        "`--format comfyui`",
        "comfy-kitchen",
        layout="comfyui",
    ),
    Kind(
        "LightX2V NVFP4",
        "denoiser in NVFP4",
        "LightX2V's converter",
        "`weight` and `weight_global_scale`",
        MODEL,
        "`--format lightx2v`",
        "the layout, written out in the test",
        layout="lightx2v",
    ),
    Kind(
        "torchao NVFP4",
        "denoiser in NVFP4",
        "torchao's safetensors, two-level, swizzled",
        "`_weight_qdata`",
        MODEL,
        "",
        "torchao's NVFP4Tensor",
        layout="torchao",
    ),
)
VAES = (
    Kind(
        "Wan2.2 VAE, original",
        "VAE",
        "Wan",
        "Wan's names, 48 latent channels",
        BESIDE,
        "",
        "goldens of the public reference",
    ),
    Kind(
        "Wan2.2 VAE, diffusers",
        "VAE",
        "diffusers",
        "diffusers' names; statistics from its config.json",
        BESIDE,
        "",
        "diffusers' AutoencoderKLWan",
    ),
    Kind(
        "LightVAE",
        "VAE",
        "LightX2V, pruned",
        "as the Wan2.2 VAE; widths are read from the tensors",
        BESIDE,
        "",
        "the shapes of a pruned model",
    ),
    Kind(
        "Wan2.1 VAE, original and diffusers",
        "VAE",
        "Wan; diffusers",
        "16 latent channels",
        BESIDE,
        "",
        "diffusers' AutoencoderKLWan",
    ),
)
TEXT_ENCODERS = (
    Kind(
        "UMT5-XXL, original",
        "text encoder",
        "Wan",
        "`token_embedding`",
        TEXT,
        "",
        "transformers' UMT5EncoderModel, renamed",
    ),
    Kind(
        "UMT5-XXL, transformers",
        "text encoder",
        "transformers",
        "`shared`, `encoder.block`",
        TEXT,
        "",
        "transformers' UMT5EncoderModel",
    ),
    Kind(
        "`tokenizer.json`",
        "tokenizer",
        "tokenizers",
        "its name",
        "beside MODEL, or `--tokenizer`",
        "",
        "tokenizers",
    ),
)
PROGRAMS = (
    Kind(
        "box",
        "whole model",
        "llvq",
        "`manifest.json`",
        "`llvq run`, `llvq verify`",
        "`--format box`",
        "check vectors in the box",
    ),
    Kind(
        "ONNX: `standard`, `trt`, `portable`",
        "stages",
        "llvq",
        "",
        "",
        "`--format onnx`",
        "onnx.checker, onnx.reference, onnxruntime",
    ),
)
KINDS = (*DENOISERS, *PACKED, *VAES, *TEXT_ENCODERS, *PROGRAMS)
