"""House rules, held by a test: every module of llvq/ keeps them, and has a test of its own name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("llvq/**/*.py"))
WRITTEN = sorted(
    path
    for folder in ("llvq", "tests", "examples", "docs", "benchmarks")
    for suffix in ("py", "md", "toml")
    for path in ROOT.glob(f"{folder}/**/*.{suffix}")
)
MAX_FILE_LINES = 300
# Signatures are not counted: a command's is one line and a help text per option.
MAX_BODY_LINES = 60


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.body[0].lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_module_says_what_it_is(path: Path) -> None:
    empty = path.name == "__init__.py" and not path.read_text(encoding="utf-8")
    assert empty or ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__init__.py"], ids=name)
def test_annotations_are_not_evaluated(path: Path) -> None:
    assert "\nfrom __future__ import annotations\n" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    assert [f.name for f in functions(path) if body_lines(f) > MAX_BODY_LINES] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_errors_are_caught_by_kind(path: Path) -> None:
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)]
    caught = [set() if h.type is None else names_in(h.type) for h in handlers]
    assert all(names and not names & {"Exception", "BaseException"} for names in caught)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_depends_on_the_environment(path: Path) -> None:
    assert not names_in(tree(path)) & {"environ", "environb", "getenv", "putenv"}


def names_in(node: ast.AST) -> set[str]:
    """Every identifier in a piece of code: names, attributes, imported names."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.alias):
            found.add(part.name.split(".")[-1])
    return found


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_everything_is_ascii(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, start=1) if not line.isascii()] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_module_has_a_test_of_its_name(path: Path) -> None:
    if path.name == "__init__.py" or not is_public(tree(path)):
        return
    mirrored = ROOT / "tests" / path.relative_to(ROOT / "llvq").with_name(f"test_{path.name}")
    assert mirrored.exists()


def is_public(module: ast.Module) -> bool:
    """Whether a module defines something that others may use."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and node.name[0] != "_" for node in module.body)
