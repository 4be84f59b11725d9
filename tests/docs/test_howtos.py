"""The programs in the how-to pages run, in a process of their own: one of them registers an op."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from docs.generate import DOCS

PRINTED = {
    "add-a-pass": "'rule': 'relu-of-relu', 'sites': 1, 'hits': 1",
    "add-an-op": "llvq::silu_gate(Tensor x, Tensor gate) -> Tensor",
    "add-a-model": "cache-attention 1 of 1",
}
# Each program in a scope of its own: what one page imports must not help another.
DRIVER = """
import json, sys
for page, program in json.load(sys.stdin).items():
    print("== " + page)
    exec(compile(program, page, "exec"), {"__name__": page})
print("== end")
"""


@pytest.fixture(scope="module")
def output() -> str:
    """What all programs print."""
    programs = {page: program_of(page) for page in PRINTED}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(programs),
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def program_of(page: str) -> str:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    return program


@pytest.mark.parametrize("page", PRINTED)
def test_the_program_of_a_page_does_what_the_page_says(page: str, output: str) -> None:
    assert PRINTED[page] in output.split(f"== {page}\n")[1].split("\n== ")[0]
