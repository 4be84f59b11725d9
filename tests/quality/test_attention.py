"""What a probe behind attention says, against PyTorch's attention over keys and values by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llvq.compiler import instantiate
from llvq.formats import nvfp4
from llvq.quality.attention import AttentionError, AttentionProbe, add_attention_probes
from llvq.quality.comparison import Comparison
from llvq.quality.metrics import NOTHING, energies
from llvq.quality.pair import open_pair

TOKENS, HEADS, DIM = 6, 2, 32


def packed(chunk: Tensor) -> Tensor:
    """A chunk of K or V as an NVFP4 page holds it."""
    return nvfp4.dequantize(*nvfp4.quantize(chunk, block_rule="four_over_six"), chunk.dtype)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads_first = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


@pytest.mark.parametrize("table", [[2, 0], [1]])
def test_a_probe_attends_over_the_packed_history(table: list[int]) -> None:
    random = torch.Generator().manual_seed(len(table))
    pool = torch.randn(3, 2, 4, TOKENS, HEADS, DIM, generator=random)  # of layers and slots
    q, k, v = torch.randn(3, 1, TOKENS, HEADS, DIM, generator=random)
    given = {"q": q, "k": k, "v": v, "pages": [pool], "table": torch.tensor(table), "cos": None,
             "sin": None, "scale": None, "layer": 1, "kv_format": "none"}  # fmt: skip
    plain, rounded = (
        attended(q, *(torch.cat([*(f(pool[1, which, slot])[None] for slot in table), own], dim=1)
                      for which, own in enumerate((k, v))))
        for f in (lambda chunk: chunk, packed)
    )  # fmt: skip
    error, kept = AttentionError("dit.blocks.1.self_attn"), pool.clone()
    AttentionProbe(error, "denoise", "nvfp4")(plain, given)
    (found,) = error.output.stages["denoise"]
    wanted = energies(plain, rounded)
    assert found.sqnr_db == pytest.approx(wanted.sqnr_db, abs=0.01) and 10 < wanted.sqnr_db < 40
    assert torch.equal(pool, kept), "the pages of the video stay as they are"


def test_every_block_is_measured_from_the_second_chunk_on(found: Comparison) -> None:
    assert [error.name for error in found.attention] == [
        "dit.blocks.0.self_attn", "dit.blocks.1.self_attn"
    ]  # fmt: skip
    for error in found.attention:
        first, *later = error.output.stages["denoise"][::2]
        assert first == NOTHING and len(later) == 2
        assert all(10 < one.sqnr_db < 45 for one in later)


def test_pages_that_stay_as_they_are_have_no_probe(files: object) -> None:
    pair = open_pair(files.checkpoint, files.program)  # type: ignore[attr-defined]
    recipe = replace(pair.recipe, kv=replace(pair.recipe.kv, format="none"))
    model = instantiate(pair.baseline, pair.model.source, "cpu")
    assert add_attention_probes(model, replace(pair, recipe=recipe)) == []
