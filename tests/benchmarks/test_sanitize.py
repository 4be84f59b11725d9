"""The verdict of `benchmarks/sanitize.sh`, with a stand-in for compute-sanitizer and for pytest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sanitize.sh"
PYTHON = """#!/bin/sh
case "$*" in
    *--collect-only*) for t in a b c d e f g; do echo "t.py::$t[1]"; echo "t.py::$t[2]"; done;;
    *) cat "${3#@}" | wc -l | sed 's/$/ passed in 1 s/';;
esac
"""
SANITIZER = """#!/bin/sh
echo "$*" >> "$(dirname "$0")/typed"
while [ "$1" != python ]; do
    [ "$1" != --log-file ] || echo "========= {summary}" > "$2"
    shift
done
exec "$@"
"""


def sanitize(folder: Path, sanitizer: str) -> tuple[int, list[str]]:
    for name, text in (("python", PYTHON), ("compute-sanitizer", sanitizer)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [str(SCRIPT), str(folder / "out"), "2"]
    made = subprocess.run(command, env=path, capture_output=True, text=True)
    return made.returncode, made.stdout.splitlines()


def test_all_is_clean(tmp_path: Path) -> None:
    code, lines = sanitize(tmp_path, SANITIZER.format(summary="ERROR SUMMARY: 0 errors"))
    assert code == 0
    assert lines == [
        f"{tool}: clean: 0 of 7 processes with findings, 7 started, 7 tests passed, 0 failed"
        for tool in ("memcheck", "racecheck")
    ]


def test_kernels_of_cudnn_are_left_out_of_racecheck_alone(tmp_path: Path) -> None:
    sanitize(tmp_path, SANITIZER.format(summary="ERROR SUMMARY: 0 errors"))
    for line in (tmp_path / "typed").read_text().splitlines():
        excluded = "--kernel-name-exclude kns=cudnn_generated " in line
        assert excluded is line.startswith("--tool racecheck ")


@pytest.mark.parametrize("summary", ["ERROR SUMMARY: 3 errors", "RACECHECK SUMMARY: 1 hazard"])
def test_a_finding_is_said(tmp_path: Path, summary: str) -> None:
    code, lines = sanitize(tmp_path, SANITIZER.format(summary=summary))
    assert code == 1 and all(": FINDINGS: 7 of 7 processes" in line for line in lines)


def test_what_is_cut_off_is_not_clean(tmp_path: Path) -> None:
    code, lines = sanitize(tmp_path, "#!/bin/sh\nexec sleep 9\n")
    assert code == 1 and all(": nothing ran: 0 of 0 processes" in line for line in lines)
