"""Which plans of cuDNN a box will ask for: one for each length of history, of one shape."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llvq import graphs
from llvq.backends.base import find_target
from llvq.compiler import Compiled, compile_model
from llvq.models.config import ModelConfig
from llvq.passes.lower import lower
from llvq.passes.lowering import lower_to_numerics
from llvq.recipe import NVFP4
from llvq.runtime.attention_plans import plans_of


@pytest.fixture(scope="module")
def wide(tiny_config: ModelConfig) -> Compiled:
    """A head of 128 channels, and chunks of 128 tokens."""
    dit = replace(tiny_config.dit, dim=128, num_heads=1, ffn_dim=64, num_layers=2)
    return compile_model(replace(tiny_config, dit=dit, latent_hw=(16, 16)), NVFP4)


def lowered(compiled: Compiled, numerics: str) -> list[tuple[int, int, int, int, float]]:
    gms = {n: graphs.load(graphs.dump(s.graph), device="meta") for n, s in compiled.stages.items()}
    lower_to_numerics(gms, numerics, compiled.recipe)
    lower(gms, find_target("sm_90a", numerics))
    return plans_of(gms, {name: stage.inputs for name, stage in compiled.stages.items()})


def test_there_is_one_for_each_length_of_history(wide: Compiled) -> None:
    assert lowered(wide, "w4a8") == [(128, 128 * n, 1, 128, 128**-0.5) for n in (1, 2, 3, 4)]


def test_there_is_none_where_cudnn_is_not_asked(wide: Compiled, compiled_nvfp4: Compiled) -> None:
    assert not lowered(wide, "w4a16") and not lowered(compiled_nvfp4, "w4a8")
