"""The example runs, and says what it did."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")


def test_a_model_of_diffusers_is_quantized(capsys: pytest.CaptureFixture[str]) -> None:
    from examples.diffusers_wan import main

    main()
    said = capsys.readouterr().out
    assert "linear                   20 of 26  condition_embedder.* kept 5, proj_out kept 1" in said
    assert "stages: condition, modulate, denoise" in said
    assert float(said.rsplit("relative error: ", 1)[1]) < 0.05
