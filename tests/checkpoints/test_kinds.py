"""The table of what is read and written has every packed layout and every export format."""

from __future__ import annotations

import re

import pytest

from llvq.checkpoints.kinds import KINDS, Kind
from llvq.checkpoints.packed_layouts import LAYOUTS
from llvq.cli.export import FORMATS
from llvq.weight_export.formats import TOOLS


def formats(kind: Kind) -> list[str]:
    return re.findall(r"--format ([\w-]+)", kind.writes)


def test_every_packed_layout_is_a_kind() -> None:
    assert {kind.layout for kind in KINDS if kind.layout} == set(LAYOUTS)


def test_every_format_is_written_as_one_kind() -> None:
    assert sorted(name for kind in KINDS for name in formats(kind)) == sorted(FORMATS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_read_or_written_and_somebody_holds_it(kind: Kind) -> None:
    assert kind.reads or kind.writes
    assert (
        kind.held_by
        and kind.made_by
        and "|" not in "".join((kind.name, kind.made_by, kind.recognised_by, kind.held_by))
    )


@pytest.mark.parametrize("name", TOOLS)
def test_a_tools_file_is_written_in_the_layout_it_is_read_by(name: str) -> None:
    (kind,) = (kind for kind in KINDS if name in formats(kind))
    assert kind.layout == TOOLS[name].layout.name


def test_names_are_told_apart() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
