from __future__ import annotations

import pytest

from llvq.errors import ArtifactError
from llvq.graphs.record import is_name, parse


@pytest.mark.parametrize("name", ["x", "add_1", "_y", "blocks_0_q_weight"])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", "1x", "a.b", "a b", "a\n", "None", "self", "torch", "\u03b1"])
def test_names_that_would_change_the_generated_code(name: str) -> None:
    assert not is_name(name)


def test_the_error_names_the_node() -> None:
    with pytest.raises(ArtifactError) as caught:
        parse({"nodes": [{"name": "linear_7"}]})
    assert "node linear_7" in str(caught.value)
