from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llvq import canonical_json
from llvq.graphs.values import DTYPES, decode, decode_val, encode, encode_val

CPU = torch.device("cpu")
arguments = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([*DTYPES, torch.strided, torch.channels_last, CPU]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=2)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of equal types all the way down: 1, True and 1.0 are three values."""
    return repr(a) == repr(b)


@given(arguments)
def test_arguments_survive_json(value: Any) -> None:
    tree = canonical_json.loads(canonical_json.dumps(encode(value)))
    assert same(decode(tree, nodes={}, device=CPU), value)


def test_nan_and_signed_zero() -> None:
    tree = canonical_json.loads(canonical_json.dumps(encode([math.nan, -0.0])))
    nan, zero = decode(tree)
    assert math.isnan(nan) and math.copysign(1.0, zero) == -1.0


def test_any_device_becomes_the_one_of_the_load() -> None:
    tree = encode(torch.device("cuda", 3))
    assert "cuda" not in str(tree)
    assert decode(tree, device=CPU) == CPU


def test_val_keeps_dtype_and_shape_in_their_containers() -> None:
    val = (torch.empty(2, 0, dtype=torch.float8_e4m3fn), [torch.empty(()), None])
    tree = encode_val(val)
    assert tree == {
        "tuple": [{"tensor": ["float8_e4m3fn", [2, 0]]}, [{"tensor": ["float32", []]}, None]]
    }
    back = decode_val(tree)
    assert encode_val(back) == tree and back[0].is_meta


@pytest.mark.parametrize("value", [1j, {1, 2}, object(), slice(None), torch.empty(1), b""])
def test_encode_refuses(value: object) -> None:
    with pytest.raises(ValueError, match="no JSON form"):
        encode(value)


def nested(depth: int) -> Any:
    tree: Any = 0
    for _ in range(depth):
        tree = [tree]
    return tree


BAD = [
    {},
    {"tuple": 1},
    {"tuple": [], "dict": []},
    {"node": "x"},
    {"node": ["x"]},
    {"device": "cuda:0"},
    {"dtype": "float3"},
    {"dtype": []},
    {"float": "0.5"},
    {"layout": "sparse_coo"},
    {"dict": [[1]]},
    {"dict": [["a", 1], ["a", 2]]},
    {"dict": [[[1], 1]]},
    {"code": "1 + 1"},
    nested(100),
    nested(900),
]


@pytest.mark.parametrize("tree", BAD, ids=range(len(BAD)))
def test_decode_refuses(tree: object) -> None:
    with pytest.raises(ValueError):
        decode(tree, nodes={}, device=CPU)


@pytest.mark.parametrize(
    "body",
    [
        1,
        [],
        ["float32"],
        ["float3", []],
        [[], []],
        ["float32", [-1]],
        ["float32", [True]],
        ["float32", [1.5]],
        ["float32", "3"],
        ["float32", [2**40, 2**40]],
    ],
    ids=str,
)
def test_decode_val_refuses_a_bad_tensor(body: object) -> None:
    with pytest.raises(ValueError):
        decode_val({"tensor": body})
    with pytest.raises(ValueError, match="unknown encoding"):
        decode({"tensor": body})


def test_decode_val_refuses_depth() -> None:
    with pytest.raises(ValueError, match="deeply"):
        decode_val(nested(100))
