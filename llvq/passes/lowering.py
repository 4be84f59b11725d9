"""lowering: a staged program becomes what a target's numerics compute, before kernels are chosen.

A program says W4A4: NVFP4 on both sides of every quantized linear, attention in the dtype of the
model. `w4a4-emulated` runs it as it is. The others rewrite its stages here, on export: weights,
inputs, outputs and the level stay what they are. `w4a4` has scales of weights swizzled at load, has
linears do the GELU or the gated residual that follows them, and multiplies Q with K in NVFP4 where
the recipe says so. `w4a8` multiplies in FP8, linears and attention, and its activations have a
scale per token, so that static scales from a calibration play no part in it; smoothing stays.
`w4a16` leaves activations in the dtype of the model. A site that is left over is an error, which no
recipe can accept: nothing would run it.

A decoder is streamed whatever the numerics: its contract becomes that of rings and of frames. What
`w4a8` computes of a prompt alone moves to `condition`, last of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch.fx import GraphModule

from llvq.errors import TargetError
from llvq.passes.activations_in_bf16 import activations_in_bf16
from llvq.passes.activations_to_fp8 import activations_to_fp8
from llvq.passes.attention_to_fp8 import attention_to_fp8
from llvq.passes.books import Book
from llvq.passes.channels_last import channels_last
from llvq.passes.fuse_add_norm_fp8 import fuse_add_norm_fp8
from llvq.passes.fuse_attention_fp8 import fuse_attention_fp8
from llvq.passes.fuse_conv_residual import fuse_conv_residual
from llvq.passes.fuse_gemm_epilogues import fuse_gemm_epilogues
from llvq.passes.fuse_qk_norm_fp8 import fuse_qk_norm_fp8
from llvq.passes.hold_rings import hold_rings
from llvq.passes.manager import Pass, Report, measure, report
from llvq.passes.raise_causal_conv import raise_causal_conv
from llvq.passes.raise_frame_attention import raise_frame_attention
from llvq.passes.raise_pixels import raise_pixels
from llvq.passes.raise_upsample_conv import raise_upsample_conv
from llvq.passes.rules import Context
from llvq.passes.scores_in_fp4 import scores_in_fp4
from llvq.passes.share_rings import share_rings
from llvq.passes.spec import verify_graph
from llvq.passes.stream_frames import stream_frames
from llvq.passes.swizzle_weights import swizzle_weights
from llvq.passes.window_per_prompt import window_per_prompt
from llvq.program import Level, Program
from llvq.recipe import Recipe

LOWERINGS: Mapping[str, tuple[Pass, ...]] = MappingProxyType(
    {
        "w4a4": (
            Pass(swizzle_weights, Level.STAGED, "exact"),
            Pass(fuse_gemm_epilogues, Level.STAGED, "exact"),
            Pass(scores_in_fp4, Level.STAGED, "rounds"),
        ),
        "w4a4-emulated": (),
        "w4a8": (
            Pass(activations_to_fp8, Level.STAGED, "rounds"),
            Pass(fuse_add_norm_fp8, Level.STAGED, "exact"),
            Pass(attention_to_fp8, Level.STAGED, "rounds"),
            Pass(fuse_attention_fp8, Level.STAGED, "rounds"),
            Pass(fuse_qk_norm_fp8, Level.STAGED, "rounds"),
        ),
        "w4a16": (Pass(activations_in_bf16, Level.STAGED, "rounds"),),
    }
)


# What moves from stage to stage, after all the rest.
PER_PROMPT: Mapping[str, tuple[Pass, ...]] = MappingProxyType(
    {"w4a8": (Pass(window_per_prompt, Level.STAGED, "exact"),)}
)
STREAMING: tuple[Pass, ...] = (
    Pass(hold_rings, Level.STAGED, "exact"),
    Pass(raise_causal_conv, Level.STAGED, "rounds"),
    Pass(raise_upsample_conv, Level.STAGED, "rounds"),
    Pass(raise_pixels, Level.STAGED, "rounds"),
    Pass(raise_frame_attention, Level.STAGED, "rounds"),
    Pass(channels_last, Level.STAGED, "rounds"),
    Pass(fuse_conv_residual, Level.STAGED, "exact"),
    Pass(stream_frames, Level.STAGED, "exact"),
    Pass(share_rings, Level.STAGED, "exact"),
)


def stream_decoder(program: Program, recipe: Recipe) -> list[Report]:
    """Rewrite the stages that decode in place, and what they take and give.

    Raises TargetError for a decoder that cannot be streamed as a whole.
    """
    return [_run(program, Context(recipe), step, "a streamed decoder") for step in STREAMING]


def lower_to_numerics(
    graphs: dict[str, GraphModule], numerics: str, recipe: Recipe
) -> list[Report]:
    """Rewrite the stages in place. Raises TargetError for what these numerics cannot do yet."""
    _refuse_scores(recipe, numerics)
    program = Program(graphs, (), (), Level.STAGED)
    return [_run(program, Context(recipe), step, numerics) for step in LOWERINGS[numerics]]


def move_to_condition(program: Program, numerics: str, recipe: Recipe) -> list[Report]:
    """Rewrite stages that are lowered to numerics in place, and what they take and give."""
    steps = PER_PROMPT.get(numerics, ())
    return [_run(program, Context(recipe), step, numerics) for step in steps]


def _run(program: Program, ctx: Context, step: Pass, who: str) -> Report:
    before = measure(program)
    books = step.function(program, ctx)
    _refuse_misses(step, books, who)
    for name, gm in program.graphs.items():
        verify_graph(name, gm, step.reaches)
    return report(step, books, before, measure(program))


def _refuse_scores(recipe: Recipe, numerics: str) -> None:
    if recipe.kv.qk != "none" and numerics != "w4a4":
        raise TargetError(
            f"{numerics} cannot multiply Q with K in {recipe.kv.qk}",
            because="only tensor cores that compute in w4a4 multiply codes of NVFP4",
            fix="choose a target that computes in w4a4, or leave kv.qk out of the recipe and "
            "quantize again",
        )


def _refuse_misses(step: Pass, books: Sequence[Book], who: str) -> None:
    """No recipe can accept a miss here: what is left would have no implementation."""
    for book in books:
        assert book.balanced, f"the book of {book.rule} does not balance: {book}"
        if book.misses:
            first = book.misses[0]
            raise TargetError(
                f"{who} cannot run {len(book.misses)} of {book.sites} sites of {step.name}",
                where=first.where,
                because=first.reason,
                fix="choose other numerics, or exclude the layer in the recipe and quantize again",
            )
