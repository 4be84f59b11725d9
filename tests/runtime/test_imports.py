"""A deployment runs boxes: it never imports the compiler."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import llvq.runtime

COMPILER = (
    "llvq.passes",
    "llvq.capture",
    "llvq.pattern",
    "llvq.program",
    "llvq.models",
    "llvq.compiler",
    "llvq.checkpoints",
    "llvq.box",
)
RUNTIME = [f"llvq.runtime.{m.name}" for m in pkgutil.iter_modules(llvq.runtime.__path__)]


def imported_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*(m for m in sys.modules if m.startswith('llvq')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_runtime_imports_nothing_of_the_compiler() -> None:
    everything = f"import {', '.join(RUNTIME)}, llvq.cli.run"
    found = imported_by(f"{everything}; from llvq import Session, load")
    assert "llvq.runtime.session" in found
    assert not [m for m in found for part in COMPILER if m == part or m.startswith(part + ".")]
