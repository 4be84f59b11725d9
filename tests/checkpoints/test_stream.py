from __future__ import annotations

from pathlib import Path

import pytest

from llvq.checkpoints.stream import read_stream
from llvq.errors import CheckpointError
from llvq.models.config import StreamConfig


def test_the_stream_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    assert read_stream(path) == StreamConfig()
    (tmp_path / "config.json").write_text('{"stream": {"steps": 2, "shift": 3}}')
    assert read_stream(path) == StreamConfig(steps=2, shift=3)


@pytest.mark.parametrize("stream", ['{"stepz": 2}', '{"steps": "2"}', "[1]", "3"])
def test_a_bad_stream(tmp_path: Path, stream: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"stream": {stream}}}')
    with pytest.raises(CheckpointError, match="streaming schedule"):
        read_stream(tmp_path / "m.pt")
