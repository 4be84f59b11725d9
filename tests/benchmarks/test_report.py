"""What a benchmark says of itself and leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.report import command_of, note, write_files


def test_the_command_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["denoise.py", "--out", "a folder"])
    assert command_of("denoise") == "python -m benchmarks.denoise --out 'a folder'"


def test_notes_do_not_mix_with_results(capsys: pytest.CaptureFixture[str]) -> None:
    note("warming up")
    told = capsys.readouterr()
    assert told.out == "" and told.err.endswith("] warming up\n")


def test_files_are_of_one_name_in_a_folder_that_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "results"
    write_files(folder, "decode", {"rows": [1]}, "a table\n")
    assert (folder / "decode.txt").read_text() == "a table\n"
    assert json.loads((folder / "decode.json").read_text()) == {"rows": [1]}
    write_files(folder, "long_run", {})
    assert not (folder / "long_run.txt").exists()
    write_files(None, "nowhere", {}, "")
