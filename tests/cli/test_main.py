"""The front door: help, versions, exit codes, no torch before it is needed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import llvq
from llvq import errors
from llvq.cli import main
from tests.cli.conftest import Typed, type_command

Invoke = Callable[..., Result]


def test_help_lists_the_commands_and_documents_the_exit_codes(tmp_path: Path) -> None:
    done = type_command("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("quantize", "export", "run", "bench", "inspect", "passes", "verify"):
        assert word in done.stdout
    assert "130  interrupted" in done.stdout


@pytest.mark.parametrize(
    "verb", ["quantize", "export", "run", "encode", "bench", "inspect", "passes"]
)
def test_the_help_of_every_command_has_an_example(invoke: Invoke, verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    assert f"llvq {verb}" in result.stdout.split("Usage:")[1].split("\n", 1)[1]


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from llvq.cli.main import app; "
        "assert CliRunner().invoke(app, ['quantize', '--help']).exit_code == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"llvq {llvq.__version__}\n"


def test_an_unknown_command_is_a_usage_error(invoke: Invoke) -> None:
    assert invoke("frobnicate").exit_code == main.WRONG_INPUT


def test_every_kind_of_error_has_a_documented_exit_code() -> None:
    kinds = {kind.kind for kind in errors.LlvqError.__subclasses__()}
    assert set(main.CODES) <= kinds
    for code in set(main.CODES.values()) | {main.WRONG_INPUT, main.INTERRUPTED}:
        assert f" {code}  " in main.EXIT_CODES


def test_a_bug_is_a_traceback(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("llvq.cli.options.open_video_model", broken)
    result = invoke("quantize", "model.pt")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupt_is_130(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llvq.cli.options.open_video_model", interrupted)
    assert invoke("quantize", "model.pt").exit_code == main.INTERRUPTED


def test_the_package_names_what_it_offers() -> None:
    for name in llvq.__all__:
        assert getattr(llvq, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = llvq.frobnicate  # type: ignore[attr-defined]


def test_a_terminated_run_leaves_nothing_behind(box: Typed, tmp_path: Path) -> None:
    words = ["run", str(box.path), "--prompt", "a kite", "--seconds", "600", "-o", "a.mp4"]
    process = subprocess.Popen([sys.executable, "-m", "llvq", *words], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(path.name.startswith(".a.mp4.part-") for path in tmp_path.iterdir())
    process.terminate()
    assert process.wait(30) == main.TERMINATED
    assert list(tmp_path.iterdir()) == []
