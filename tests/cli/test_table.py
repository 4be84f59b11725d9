"""Tables and sizes for people, JSON for machines."""

from __future__ import annotations

import json

import pytest

from llvq.cli.table import human, print_json, print_table, task_bars


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 30, "5.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_bytes_are_readable(nbytes: int, text: str) -> None:
    assert human(nbytes) == text


def test_a_table_keeps_brackets_and_shows_none_as_a_dash(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table("title", ("name", "n"), [("x [1, 2]", 3), ("[red]y", None)])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown] == [
        ["title"], ["name", "n"], ["x", "[1,", "2]", "3"], ["[red]y", "-"]
    ]  # fmt: skip


def test_json_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1, None]})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": [1, None]} and captured.err == ""


def test_bars_are_made_when_their_work_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with task_bars() as tell:
        tell("one", 0, 2)
        tell("one", 2, 2)
        tell("two", 1, 1)
    captured = capsys.readouterr()
    assert captured.out == captured.err == "", "what is soon done leaves no lines in a log"


def test_a_log_has_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.0, 9.0, 12.0, 12.0, 13.0, 30.0, 30.0))
    monkeypatch.setattr("llvq.cli.table.monotonic", lambda: next(seconds))
    with task_bars() as tell:
        for done in range(1, 5):
            tell("videos", done, 4)
    assert capsys.readouterr().err.splitlines() == ["videos  2 of 4", "videos  4 of 4"]
