"""Wrappers take what their ops take."""

from __future__ import annotations

import inspect

import pytest

from llvq.backends.triton.ops import OPS
from llvq.dialect import DIALECT


@pytest.mark.parametrize("name", OPS)
def test_a_wrapper_has_a_launcher_and_then_the_arguments_of_its_op(name: str) -> None:
    op = DIALECT[name.partition(":")[0]]
    wrapper, reference = (inspect.signature(f) for f in (OPS[name], op.reference))
    first, *others = wrapper.parameters.values()
    assert first.name == "launch"
    taken = [(p.name, p.annotation, p.default) for p in others]
    assert taken == [(p.name, p.annotation, p.default) for p in reference.parameters.values()]
    assert wrapper.return_annotation == reference.return_annotation
