"""What an error looks like, and how a script tells one kind from another."""

from __future__ import annotations

import pytest

from llvq import errors
from llvq.errors import CheckpointError, LlvqError, OutputError

KINDS = sorted(LlvqError.__subclasses__(), key=lambda kind: kind.__name__)


def test_an_error_is_four_lines() -> None:
    error = CheckpointError("it broke", where="model.pt", because="it is old", fix="make a new one")
    assert str(error) == (
        "error[checkpoint]: it broke\n"
        "  at       model.pt\n"
        "  because  it is old\n"
        "  fix      make a new one"
    )
    assert (error.what, error.where, error.args) == ("it broke", "model.pt", ("it broke",))


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_line_is_left_out(empty: str | None) -> None:
    error = CheckpointError("it broke", where=empty, because=empty, fix="make a new one")
    assert str(error).splitlines() == ["error[checkpoint]: it broke", "  fix      make a new one"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_has_a_word_of_its_own_and_a_builtin_parent(kind: type[LlvqError]) -> None:
    assert kind.__name__ == f"{kind.kind.capitalize()}Error"
    assert [other for other in KINDS if other.kind == kind.kind] == [kind]
    assert issubclass(kind, (ValueError, RuntimeError, OSError))
    assert str(kind("it broke")) == f"error[{kind.kind}]: it broke"


def test_every_kind_is_here() -> None:
    public = {value for value in vars(errors).values() if isinstance(value, type)}
    assert public - {LlvqError} == set(KINDS)


def test_an_os_error_says_what_llvq_says() -> None:
    """OSError has a text of its own for two arguments; ours takes one."""
    with pytest.raises(OSError, match="the disk is full"):
        raise OutputError("the disk is full", because="No space left on device")
