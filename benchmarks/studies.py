"""The studies: which variants of a model are compared, and what the bytes of a row are."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.study_runs import Study, Variant
from llvq.recipe import BF16, KvRecipe, LinearRecipe, Recipe
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.executable import Executable
from llvq.runtime.session import schedule_of


def page_bytes(model: Executable) -> int:
    """Bytes of the pages of one video, as they are allocated."""
    pages = Denoiser(model, schedule_of(model.facts)).pages
    return sum(page.nbytes for page in pages.values())


def weight_bytes(model: Executable) -> int:
    """Bytes of the weights of the denoiser, once each."""
    held = {n: t.nbytes for stage in model.stages.values() for n, t in stage.graph.named_buffers()}
    return sum(nbytes for name, nbytes in held.items() if name.startswith("dit."))


def pages_of(kv_format: str, *keep: str) -> Recipe:
    return replace(BF16, kv=KvRecipe(kv_format, keep))


def weights_by(rule: str) -> Recipe:
    return Recipe(name=rule, linear=LinearRecipe(weight_rule=rule), kv=KvRecipe("none"))


READING = (
    Variant("bf16, other attention", BF16, attention=True),
    Variant("bf16, other seed", BF16, other_seed=True),
)
KV = Study(
    "pages of the KV cache; weights in bf16",
    (
        *READING,
        Variant("fp8", pages_of("fp8")),
        Variant("nvfp4", pages_of("nvfp4")),
        Variant("nvfp4, sink in bf16", pages_of("nvfp4", "sink")),
        Variant("nvfp4, newest in bf16", pages_of("nvfp4", "newest")),
        Variant("nvfp4, sink and newest in bf16", pages_of("nvfp4", "sink", "newest")),
        Variant("int4, groups of 64", pages_of("int4")),
        Variant("int2, groups of 64", pages_of("int2")),
    ),
    first=1,
    nbytes=page_bytes,
)
WEIGHTS = Study(
    "weights in NVFP4, activations four_over_six; pages in bf16",
    (
        *READING,
        *(Variant(rule, weights_by(rule)) for rule in ("max", "four_over_six", "mse_sweep")),
        *(
            Variant(
                f"four_over_six, {name}", weights_by("four_over_six"), calibrate=f"modelopt:{name}"
            )
            for name in ("awq_lite", "svdquant")
        ),
    ),
    first=0,
    nbytes=weight_bytes,
)
