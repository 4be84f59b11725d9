"""A box of a published size with random weights, to measure with where there is no checkpoint.

    python -m benchmarks.random_box build/5b.llvq --target sm_90a --numerics w4a8
    llvq bench build/5b.llvq

It is written and exported as any model is, but that weights are drawn in NVFP4 instead of being
quantized, and that no check vectors are made: those of 5B take minutes on a CPU. No text encoder,
since nobody has a prompt for random weights.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.random_weights import RandomSource, weight_specs
from benchmarks.report import note
from benchmarks.sizes import model_sizes, size_options
from llvq import box
from llvq.backends.base import Target, find_target
from llvq.checks import Checks
from llvq.compiler import compile_model
from llvq.errors import LlvqError
from llvq.models.config import ModelConfig
from llvq.recipe import NVFP4, DecodeRecipe, KvRecipe, Recipe
from llvq.runtime.load import open_checked

SEED = 0


def write_random_box(
    path: Path, config: ModelConfig, target: Target, recipe: Recipe = NVFP4
) -> str:
    """Replaces what is there; gives the id. Raises LlvqError."""
    compiled = compile_model(replace(config, text=None), recipe)
    specs = weight_specs(compiled.config, torch.bfloat16)
    program = path.with_suffix(".nvfp4")
    source = RandomSource(specs, {}, SEED)
    box.write_program(compiled, source, program, overwrite=True)
    note(f"{program}: weights are there")
    opened = open_checked(program, kinds=("program",), hash_weights=False)
    unchecked = {name: "its weights are random" for name in compiled.stages}
    no_checks: dict[str, Any] = {
        "executable": lambda *_, **__: None,
        "record_checks": lambda *_: Checks({}, unchecked),
    }
    with patch.multiple(box, **no_checks):
        identity, _ = box.export_box(opened, target, path, overwrite=True)
    shutil.rmtree(program)  # the box has links of its own to the weights
    return identity


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """What `recipe_of` reads."""
    add = parser.add_argument
    add("--kv", default="nvfp4", help="format of KV pages (default nvfp4)")
    add("--latents-per-call", type=int, default=1, help="of the decoder (default 1)")
    add("--conv", default="none", help="what the decoder multiplies in: none (bf16), or fp8")


def recipe_of(options: argparse.Namespace) -> Recipe:
    decode = DecodeRecipe(options.latents_per_call, options.conv)
    return replace(NVFP4, kv=KvRecipe(options.kv), decode=decode)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--numerics")
    recipe_options(parser)
    size_options(parser)
    options = parser.parse_args(given)
    try:
        target = find_target(options.target, options.numerics)
        config = model_sizes(options)
        identity = write_random_box(options.path, config, target, recipe_of(options))
    except LlvqError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.path}   id {identity[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
