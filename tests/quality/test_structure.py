from __future__ import annotations

from llvq.quality.comparison import Comparison


def test_structure_says_what_became_of_the_linears(found: Comparison) -> None:
    found_ops = found.structure.ops["denoise"]
    before, after = found_ops["aten.linear.default"]
    assert (before, after) == (17, 1)
    # q_k_v are one, and so are o, cross q, cross o, and the two of ffn, in each of two blocks
    assert found_ops["llvq.nvfp4_linear.default"] == (0, 12)
    assert found.structure.fused == {"self_attn.q_k_v": 2, "cross_attn.k_v": 2}
    assert found.structure.excluded["dit.head.head"] == "*head.head"
    assert len(found.structure.excluded) == 6
    assert found.structure.ops["decode"] == {}
