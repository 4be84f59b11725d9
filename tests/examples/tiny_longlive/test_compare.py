"""What the command refuses before anything is compiled; the report itself is tested in quality/."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.tiny_longlive.compare import main


def test_a_prompt_that_cannot_be_looked_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tmp_path / "model.pt"), str(tmp_path / "model.nvfp4"), "-o", str(tmp_path / "out")]
    assert main([*given, "--prompt", "a red kite"]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 4 and "'a red kite'" in told
    assert not (tmp_path / "out").exists()
