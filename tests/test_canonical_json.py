from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llvq import canonical_json

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(plain)
def test_one_document_has_one_spelling(document: object) -> None:
    data = canonical_json.dumps(document)
    assert canonical_json.loads(data) == document
    assert canonical_json.dumps(canonical_json.loads(data)) == data
    assert json.loads(data) == document


def test_the_order_of_keys_does_not_matter() -> None:
    assert canonical_json.dumps({"b": 1, "a": (2,)}) == canonical_json.dumps({"a": [2], "b": 1})


@pytest.mark.parametrize("document", [float("nan"), [float("inf")], {1: 2}, {"a": {True: 0}}, {1}])
def test_dumps_refuses(document: object) -> None:
    with pytest.raises(ValueError):
        canonical_json.dumps(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":NaN}',
        b"[Infinity]",
        b'{"a":1,"a":1}',
        b"\xff",
        b"[" * 100_000,
        b"[" * 200 + b"]" * 200,
        b"1 2",
    ],
)
def test_loads_refuses(data: bytes) -> None:
    with pytest.raises(ValueError):
        canonical_json.loads(data)
