"""The table of layouts: no two can be taken for each other, and what a reader needs is in it."""

from __future__ import annotations

import pytest

from llvq.calibration import FACTS
from llvq.checkpoints.packed_layouts import LAYOUTS, RULE_RANGE, Layout


def test_layouts_with_equal_names_differ_in_the_order_of_bytes() -> None:
    def bytes_of(layout: Layout) -> tuple[object, ...]:
        return layout.codes, layout.global_scale, layout.even_nibble, layout.scale_order

    assert len({bytes_of(layout) for layout in LAYOUTS.values()}) == len(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_suffixes_are_those_of_the_tensors_beside_the_codes(layout: Layout) -> None:
    assert {layout.scales, layout.global_scale} < layout.suffixes | {None}
    assert layout.codes not in layout.suffixes
    assert {fact for _, fact in layout.facts} <= set(FACTS)


def test_ranges_of_the_scale_rules() -> None:
    assert RULE_RANGE == {
        "static_6": 2688,
        "static_4": 1792,
        "mse": 1536,
        "mae": 1536,
        "abs_max": 1536,
    }
