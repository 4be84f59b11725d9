"""Bring a model of your own: diffusers' Wan transformer through the passes of LongLive-2.0.

    python -m examples.diffusers_wan

Any module that `torch.export` captures with static shapes will do. Three things are yours to say:
which linears stay as they are, how often each input changes, and what differs from what the rules
know (`allow_miss`; nothing here needs it). The weights are random: the numbers show that it works,
not how good the video would be.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel

from llvq.exported import Quantized, quantize
from llvq.recipe import LinearRecipe, Recipe

# diffusers' names of the outer linears. A glob that fits nothing shows as 0 in the pass table.
RECIPE = Recipe(name="wan-nvfp4", linear=LinearRecipe(exclude=("condition_embedder.*", "proj_out")))

# With rates, what depends on the prompt or the timestep alone becomes a stage of its own.
RATES = {"encoder_hidden_states": "prompt", "timestep": "step"}


def tiny_model() -> WanTransformer3DModel:
    """Two layers, in bf16 as `from_pretrained(torch_dtype=torch.bfloat16)` makes them: what
    diffusers lists in `_keep_in_fp32_modules` stays fp32, `.to(torch.bfloat16)` would round it."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=64,
        text_dim=64,
        freq_dim=32,
        ffn_dim=256,
        num_layers=2,
    ).eval()
    for name, parameter in model.named_parameters():
        if not any(kept in name for kept in model._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    return model


def example_inputs(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Three latent frames of 8 x 8 and twelve text tokens."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 16, 3, 8, 8, generator=generator).to(dtype),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 12, 64, generator=generator).to(dtype),
    }


def quantize_model(model: WanTransformer3DModel, recipe: Recipe = RECIPE) -> Quantized:
    """Export, then every pass; the books of each pass are in `.reports`."""
    inputs = example_inputs(model.patch_embedding.weight.dtype)
    # A tuple of tensors comes back; what is no tensor is compiled in.
    exported = torch.export.export(model, (), {**inputs, "return_dict": False}, strict=False)
    return quantize(exported, recipe, rates=RATES)


def main() -> None:
    model, inputs = tiny_model(), example_inputs()
    quantized = quantize_model(model)
    for report in quantized.reports:
        for book in report.books:
            print(f"{report.name:20} {book.rule:24} {book.hits} of {book.sites}", end="  ")
            print(", ".join(f"{glob} kept {n}" for glob, n in book.excluded.items()))
    with torch.no_grad():
        wanted = model(**inputs, return_dict=False)[0].float()
    found = quantized.module()(**inputs)[0].float()
    print(f"stages: {', '.join(quantized.program.graphs)}")
    print(f"relative error: {((found - wanted).norm() / wanted.norm()).item():.4f}")


if __name__ == "__main__":
    main()
