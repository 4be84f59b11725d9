"""Names of the VAE's tensors: those of Wan's own files, and diffusers' of the same model.

Source: diffusers' AutoencoderKLWan. Wan's names are those of `llvq.models.vae`. Where a change of
resolution stands depends on how many blocks are before it, so there is a table per size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import count, takewhile

from llvq.checkpoints.name_table import NameTable
from llvq.models.config import VaeConfig

BLOCK = (
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
)
CHANGE = ("resample.1", "time_conv")
ENDS = (
    ("conv1", "quant_conv"),
    ("conv2", "post_quant_conv"),
    *(
        (f"{half}.{wan}", f"{half}.{diffusers}")
        for half in ("encoder", "decoder")
        for wan, diffusers in (
            ("conv1", "conv_in"),
            *((f"middle.0.{a}", f"mid_block.resnets.0.{b}") for a, b in BLOCK),
            *((f"middle.2.{a}", f"mid_block.resnets.1.{b}") for a, b in BLOCK),
            *((f"middle.1.{a}", f"mid_block.attentions.0.{a}") for a in ("norm", "to_qkv", "proj")),
            ("head.0", "norm_out"),
            ("head.2", "conv_out"),
        )
    ),
)
FIRST_BLOCK = "decoder.up_blocks.{}.resnets.{}.conv1.weight"
STAGED = "encoder.down_blocks.0.resnets.0.conv1.weight"
MAX_STAGES = MAX_BLOCKS = 64


def names_of(config: VaeConfig) -> NameTable:
    """The table of a VAE of these sizes; its left side is Wan's."""
    return _table(config.is_residual, config.num_res_blocks, len(config.dim_mult))


def names_in(names: Collection[str]) -> NameTable:
    """The table of the VAE that diffusers gave these names; any, if it was not diffusers."""
    stages = _run(names, "{0}", "0", MAX_STAGES)
    blocks = _run(names, "0", "{0}", MAX_BLOCKS) - 1
    return _table(STAGED in names, blocks if blocks > 0 else 2, stages or 4)


def _run(names: Collection[str], stage: str, block: str, most: int) -> int:
    pattern = FIRST_BLOCK.format(stage, block)
    there = takewhile(lambda index: pattern.format(index) in names, count())
    return min(sum(1 for _ in there), most)


def _table(is_residual: bool, blocks: int, stages: int) -> NameTable:
    rows = _staged(blocks) if is_residual else _listed(blocks, stages)
    return NameTable("Wan's own", "diffusers'", (*ENDS, *rows))


def _staged(blocks: int) -> Iterator[tuple[str, str]]:
    """Wan2.2: a module per resolution. Its decoder has one block more than its encoder."""
    down, up = "encoder.downsamples.{}.downsamples", "decoder.upsamples.{}.upsamples"
    for wan, diffusers in BLOCK:
        yield f"{down}.{{}}.{wan}", f"encoder.down_blocks.{{}}.resnets.{{}}.{diffusers}"
        yield f"{up}.{{}}.{wan}", f"decoder.up_blocks.{{}}.resnets.{{}}.{diffusers}"
    for part in CHANGE:
        yield f"{down}.{blocks}.{part}", f"encoder.down_blocks.{{}}.downsampler.{part}"
        yield f"{up}.{blocks + 1}.{part}", f"decoder.up_blocks.{{}}.upsampler.{part}"


def _listed(blocks: int, stages: int) -> Iterator[tuple[str, str]]:
    """Wan2.1: one list of all layers, in diffusers' encoder too, but not in its decoder."""
    for wan, diffusers in (*BLOCK, *((part, part) for part in CHANGE)):
        yield f"encoder.downsamples.{{}}.{wan}", f"encoder.down_blocks.{{}}.{diffusers}"
    for stage in range(stages):
        start = stage * (blocks + 2)
        for block in range(blocks + 1):
            for wan, diffusers in BLOCK:
                its = f"decoder.up_blocks.{stage}.resnets.{block}.{diffusers}"
                yield f"decoder.upsamples.{start + block}.{wan}", its
        for part in CHANGE:
            its = f"decoder.up_blocks.{stage}.upsamplers.0.{part}"
            yield f"decoder.upsamples.{start + blocks + 1}.{part}", its
