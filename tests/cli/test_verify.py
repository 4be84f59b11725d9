"""`llvq verify`: bytes first, then what this machine computes, and an exit code for scripts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llvq.checks import LIMIT, CheckResult
from tests.cli.conftest import Typed

Invoke = Callable[..., Result]


def test_a_box_gives_the_same_bytes_where_it_was_made(invoke: Invoke, box: Typed) -> None:
    result = invoke("verify", box.path)
    assert result.exit_code == 0, result.stderr
    assert f"{box.path}: " in result.stdout and "every byte as written" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if " ok " in line]
    assert {"encode_text", "condition", "denoise", "decode"} <= {row[0] for row in rows}
    assert all(row[2] == row[3] and row[4] == "0.00e+00" for row in rows)


def test_json_has_a_row_per_output(invoke: Invoke, box: Typed) -> None:
    document = json.loads(invoke("verify", box.path, "--json").stdout)
    assert document["id"] == json.loads(invoke("inspect", box.path, "--json").stdout)["id"]
    assert document["unchecked"] == {}
    assert all(row["passed"] and row["exact"] for row in document["checks"])
    assert len(document["checks"]) > 8


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another machine might have given."""
    given = [
        CheckResult("denoise", "velocity", 0.5 * LIMIT, exact=False),
        CheckResult("decode", "frames", 0.0, exact=True),
        CheckResult("decode", "[more]", 2 * LIMIT, exact=False),
    ]
    monkeypatch.setattr("llvq.checks.replay", lambda *_: given)


@pytest.mark.usefixtures("replayed")
def test_another_result_is_named_and_fails(invoke: Invoke, box: Typed) -> None:
    result = invoke("verify", box.path)
    assert result.exit_code == 4
    rows = [line.split() for line in result.stdout.splitlines()[-2:]]
    assert rows == [
        ["denoise", "ok", "1", "0", "2.50e-02"],
        ["decode", "differs:", "[more]", "2", "1", "1.00e-01"],
    ]


@pytest.mark.usefixtures("replayed")
def test_another_result_fails_in_json_too(invoke: Invoke, box: Typed) -> None:
    result = invoke("verify", box.path, "--json")
    assert result.exit_code == 4
    passed = [row["passed"] for row in json.loads(result.stdout)["checks"]]
    assert passed == [True, True, False]


def test_one_flipped_bit_of_a_weight_is_found(invoke: Invoke, box: Typed, tmp_path: Path) -> None:
    copy = shutil.copytree(box.path, tmp_path / "copy.llvq")
    weights = next(copy.glob("weights/*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    result = invoke("verify", copy)
    assert result.exit_code == 4
    assert weights.name in result.stderr and len(result.stderr.splitlines()) == 4


def test_a_program_has_nothing_to_verify(invoke: Invoke, program: Typed) -> None:
    result = invoke("verify", program.path)
    assert result.exit_code == 4
    assert "this is a program, not a box" in result.stderr
