"""The arguments and `val` metadata of a node as JSON, one spelling for each value.

    None, True, 3, 0.5, "x"     as they are; {"float": "inf" | "-inf" | "nan"}
    [..]                        a JSON array; a tuple is {"tuple": [..]}, a dict {"dict": [[k, v]]}
    nodes                       {"node": name}
    torch.bfloat16              {"dtype": "bfloat16"}; also "layout", "memory_format"
    any device                  {"device": "target"}: the one the graph is loaded for
    a tensor (only in val)      {"tensor": ["bfloat16", [1, 7040, 3072]]}

Everything here raises ValueError with a sentence; callers add where it happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3",
    torch.float8_e5m2: "f8e5m2",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
_DTYPE_OF = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
_MEMORY_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_CONSTANTS: dict[str, dict[str, Any]] = {
    "dtype": _DTYPE_OF,
    "layout": {"strided": torch.strided},
    "memory_format": {name: getattr(torch, name) for name in _MEMORY_FORMATS},
    "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
}

# Deeper than any argument list or pytree, shallower than Python's stack.
_MAX_DEPTH = 32
_MAX_ELEMENTS = 2**48


def encode(value: Any) -> Any:
    """A node argument as JSON."""
    if value is None or isinstance(value, str) or type(value) in (bool, int):
        return value
    if isinstance(value, Node):
        return {"node": value.name}
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.device):
        return {"device": "target"}
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return _encode_constant(value)
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    raise ValueError(f"{value!r} of type {type(value).__name__} has no JSON form")


def _encode_constant(value: torch.dtype | torch.layout | torch.memory_format) -> Any:
    name = str(value).removeprefix("torch.")
    for tag, known in _CONSTANTS.items():
        if known.get(name) == value:
            return {tag: name}
    raise ValueError(f"{value} has no JSON form")


def encode_val(value: Any) -> Any:
    """`node.meta["val"]` as JSON: dtype and shape of each tensor, nothing of its data."""
    if isinstance(value, torch.Tensor):
        if any(type(size) is not int for size in value.shape):
            raise ValueError(f"shape {list(value.shape)} is dynamic; stage graphs are static")
        return {"tensor": [_encode_constant(value.dtype)["dtype"], list(value.shape)]}
    if isinstance(value, tuple):
        return {"tuple": [encode_val(item) for item in value]}
    if isinstance(value, list):
        return [encode_val(item) for item in value]
    return encode(value)


def decode(
    tree: Any,
    *,
    nodes: Mapping[str, Node] | None = None,
    device: torch.device | None = None,
    depth: int = 0,
) -> Any:
    """A node argument from JSON. Without `nodes`, or `device`, the tree may not refer to them."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if depth > _MAX_DEPTH:
        raise ValueError("a value is nested too deeply")
    if isinstance(tree, list):
        return [decode(item, nodes=nodes, device=device, depth=depth + 1) for item in tree]
    tag, body = _tagged(tree)
    if tag == "node" and isinstance(body, str) and nodes is not None:
        if body not in nodes:
            raise ValueError(f"node {body!r} is not defined before its use")
        return nodes[body]
    if tag == "device" and body == "target" and device is not None:
        return device
    if tag in _CONSTANTS and isinstance(body, str) and body in _CONSTANTS[tag]:
        return _CONSTANTS[tag][body]
    if tag == "tuple" and isinstance(body, list):
        return tuple(decode(item, nodes=nodes, device=device, depth=depth + 1) for item in body)
    if tag == "dict" and isinstance(body, list):
        pairs = [decode(item, nodes=nodes, device=device, depth=depth + 1) for item in body]
        return _dict_of(pairs)
    raise ValueError(f"unknown encoding {_short(tree)}")


def decode_val(tree: Any, *, depth: int = 0) -> Any:
    """`node.meta["val"]` from JSON, tensors on `meta`."""
    if depth > _MAX_DEPTH:
        raise ValueError("a value is nested too deeply")
    if isinstance(tree, list):
        return [decode_val(item, depth=depth + 1) for item in tree]
    if not isinstance(tree, dict):
        return decode(tree)
    tag, body = _tagged(tree)
    if tag == "tensor":
        return _decode_tensor(body)
    if tag == "tuple" and isinstance(body, list):
        return tuple(decode_val(item, depth=depth + 1) for item in body)
    return decode(tree)


def _tagged(tree: Any) -> tuple[str, Any]:
    if not isinstance(tree, dict) or len(tree) != 1:
        raise ValueError(f"unknown encoding {_short(tree)}")
    return next(iter(tree.items()))


def _dict_of(pairs: list[Any]) -> dict[Any, Any]:
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str | int):
            raise ValueError(f"{_short(pair)} is not a key and a value")
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a dict has a key twice")
    return dict(pairs)


def _decode_tensor(body: Any) -> torch.Tensor:
    if not isinstance(body, list) or len(body) != 2:
        raise ValueError(f"{_short(body)} is not a dtype and a shape")
    dtype_name, shape = body
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPE_OF:
        raise ValueError(f"unknown dtype {_short(dtype_name)}")
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{_short(shape)} is not a shape")
    if math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise ValueError(f"shape {_short(shape)} is larger than any memory")
    return torch.empty(shape, dtype=_DTYPE_OF[dtype_name], device="meta")


def _short(tree: Any) -> str:
    text = repr(tree)
    return text if len(text) <= 80 else text[:77] + "..."
