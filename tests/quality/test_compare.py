from __future__ import annotations

from llvq.quality.comparison import Comparison


def test_notes_own_up_to_random_weights(found: Comparison) -> None:
    assert any("random" in note for note in found.notes)
    assert any("--frames" in note for note in found.notes)
