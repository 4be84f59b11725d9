"""Every kind of object is looked at, and the table says which of them hold."""

from __future__ import annotations

from examples.tiny_longlive.captions import MOVES, SHAPES, caption, parse
from examples.tiny_longlive.kinds import KINDS, scenes_of_kinds, table


def test_every_kind_is_there_small_and_large() -> None:
    asked = scenes_of_kinds()
    assert len(KINDS) == len(SHAPES) * len(MOVES) - 4, "what is round does not turn"
    for size in ("small", "large"):
        assert {kind for kind, scene in asked if scene.things[0].size == size} == set(KINDS)
    for kind, scene in asked:
        (thing,) = parse(caption(scene)).things
        assert (thing.shape, thing.move) == kind
    assert asked == scenes_of_kinds()


def test_a_table_has_the_means_of_shapes_and_moves() -> None:
    """Frames that cannot tell do not count, and what was not looked at is not there."""
    lines = table({("star", "waits"): [1.0, None, 1.0], ("star", "tumbles"): [0.5, 0.0, 0.0, 0.5]})
    rows = {row.split()[0]: row.split()[1:] for row in lines.splitlines()[1:]}
    assert rows["star"] == ["-", "0.25", "-", "-", "-", "1.00", "0.50"]
    assert rows["all"] == rows["star"] and set(rows["ball"]) == {"-"}
