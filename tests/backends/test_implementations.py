"""Names of implementations lead to functions, or to a sentence."""

from __future__ import annotations

import pytest

from llvq.backends import implementations
from llvq.backends.implementations import find_implementation, table
from llvq.backends.torch_ops import OPS
from llvq.dialect import DIALECT
from llvq.errors import KernelError
from tests.backends import toy_ops


def test_a_name_leads_to_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(implementations.TABLES, "triton", "tests.backends.toy_ops")
    monkeypatch.setitem(toy_ops.OPS, "rope:small", "a smaller rope")
    assert find_implementation("torch", "attention") is OPS["attention"]
    assert find_implementation("triton:small", "rope") == "a smaller rope"
    assert table("torch").keys() == DIALECT.keys()


@pytest.mark.parametrize(
    ("name", "op"), [("torch", "no_op"), ("torch:no", "rope"), ("vulkan", "attention")]
)
def test_what_is_not_there_is_of_another_version(name: str, op: str) -> None:
    with pytest.raises(KernelError, match=f"no implementation '{name}' of llvq.{op}") as caught:
        find_implementation(name, op)
    assert "export the program again" in str(caught.value)


def test_without_triton_the_fix_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(implementations.TABLES, "triton", "no_triton_here")
    with pytest.raises(KernelError, match="cannot be compiled or launched") as caught:
        find_implementation("triton", "quantize")
    assert caught.value.because == "Python has no module no_triton_here"
    assert caught.value.fix == "pip install llvq[gpu]"
