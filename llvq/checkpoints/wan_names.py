"""Names of the denoiser's tensors: those of Wan's own files, and diffusers' of the same model.

Source: diffusers' WanTransformer3DModel. Wan's names are those of `llvq.models.dit`.
"""

from __future__ import annotations

from llvq.checkpoints.name_table import NameTable

ATTENTIONS = (("self_attn", "attn1"), ("cross_attn", "attn2"))
PROJECTIONS = (
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("o", "to_out.0"),
    ("norm_q", "norm_q"),
    ("norm_k", "norm_k"),
)
TABLE = NameTable(
    "Wan's own",
    "diffusers'",
    (
        ("patch_embedding", "patch_embedding"),
        ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("blocks.{}.modulation", "blocks.{}.scale_shift_table"),
        *(
            (f"blocks.{{}}.{wan}.{part}", f"blocks.{{}}.{diffusers}.{its}")
            for wan, diffusers in ATTENTIONS
            for part, its in PROJECTIONS
        ),
        # Wan counts the norms as they are used in the block, diffusers by what they stand before.
        ("blocks.{}.norm3", "blocks.{}.norm2"),
        ("blocks.{}.ffn.0", "blocks.{}.ffn.net.0.proj"),
        ("blocks.{}.ffn.2", "blocks.{}.ffn.net.2"),
        ("head.modulation", "scale_shift_table"),
        ("head.head", "proj_out"),
    ),
)


def to_original(name: str) -> str | None:
    """diffusers' name (`blocks.0.attn1.to_q.weight`) as Wan's; None if it is none of diffusers'."""
    return TABLE.to_left(name)


def to_diffusers(name: str) -> str | None:
    """Wan's name (`blocks.0.self_attn.q.weight`) as diffusers'; None if it is none of Wan's."""
    return TABLE.to_right(name)
