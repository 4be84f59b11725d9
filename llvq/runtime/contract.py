"""What a compiled graph takes: name, dtype, shape and rate of each input, checked per call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from llvq.errors import ContractError

_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "dtype": str,
    "rate": str,
    "shape": (list, tuple),
    "allowed": (list, tuple),
}
Rate = Literal["prompt", "step", "chunk", "call", "emit", "state"]


@dataclass(frozen=True)
class InputSpec:
    """One graph input. `shape` has None for a bucketed dimension, whose sizes are `allowed`.

    `rate` says how often the input changes: once per prompt, timestep, chunk or model call, or only
    when a finished chunk is emitted as frames. `state` never does: it is held for a whole video,
    zeros at its start, and the graph writes to it in place.
    Raises ContractError if the parts do not fit.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    rate: Rate
    allowed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rate not in get_args(Rate):
            raise _bad_spec(self.name, f"{self.rate!r} is none of the rates {get_args(Rate)}")
        sizes = [size for size in (*self.shape, *self.allowed) if size is not None]
        legal = all(type(size) is int and size >= 0 for size in sizes)
        if not legal or (None in self.shape) != bool(self.allowed) or self.shape.count(None) > 1:
            raise _bad_spec(self.name, f"shape {self.shape} with allowed sizes {self.allowed}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, at the largest allowed size of a bucketed dimension."""
        return tuple(max(self.allowed) if size is None else size for size in self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a manifest; `from_dict` is the inverse."""
        return {**asdict(self), "dtype": _name(self.dtype)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """The inverse of `to_dict`. Raises ContractError, whatever is in `data`."""
        if not isinstance(data, Mapping):
            raise _bad_spec("?", f"it is a {type(data).__name__}")
        name = str(data.get("name"))
        if surplus := data.keys() ^ cls.__dataclass_fields__.keys():
            raise _bad_spec(name, f"missing or unknown entries: {', '.join(sorted(surplus))}")
        for key, kind in _TYPES.items():
            if not isinstance(data[key], kind):
                raise _bad_spec(name, f"{key} is a {type(data[key]).__name__}")
        dtype = getattr(torch, data["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise _bad_spec(name, f"torch has no dtype {data['dtype']!r}")
        lists = {key: tuple(data[key]) for key in ("shape", "allowed")}
        return cls(**{**data, **lists, "dtype": dtype})

    def admits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape is one the graph was compiled for."""
        if len(shape) != len(self.shape):
            return False
        return all(
            size in self.allowed if expected is None else size == expected
            for size, expected in zip(shape, self.shape, strict=True)
        )

    def __str__(self) -> str:
        bucket = "|".join(map(str, self.allowed))
        sizes = (bucket if size is None else str(size) for size in self.shape)
        return f"{_name(self.dtype)} [{', '.join(sizes)}]"


def check(specs: Sequence[InputSpec], tensors: Mapping[str, torch.Tensor], *, stage: str) -> None:
    """Raise ContractError at the first input of `stage` that is not as compiled.

    Looks at names, dtypes and shapes, never at data: microseconds, and no synchronization.
    """
    for spec in specs:
        tensor = tensors.get(spec.name)
        if tensor is None:
            raise _broken(stage, spec.name, f"is missing, expected {spec}", "pass it")
        if tensor.dtype != spec.dtype or not spec.admits(tensor.shape):
            got = f"{_name(tensor.dtype)} {list(tensor.shape)}"
            raise _broken(stage, spec.name, f"is {got}, expected {spec}", _remedy(spec, tensor))
    if len(tensors) > len(specs):
        known = {spec.name for spec in specs}
        surplus = sorted(tensors.keys() - known)
        raise _broken(stage, ", ".join(surplus), "is not an input", f"pass only {sorted(known)}")


def _remedy(spec: InputSpec, tensor: torch.Tensor) -> str:
    if tensor.dtype != spec.dtype:
        return f"convert it: {spec.name}.to(torch.{_name(spec.dtype)})"
    return "pass a tensor of that shape, or export the model again for this size"


def _broken(stage: str, name: str, what: str, fix: str) -> ContractError:
    return ContractError(
        f"input {name} {what}",
        where=f"stage {stage}",
        because="the graph was compiled for exactly these inputs",
        fix=fix,
    )


def _bad_spec(name: str, what: str) -> ContractError:
    return ContractError(
        f"the description of input {name} is not valid",
        because=what,
        fix="export the model again with this version of llvq",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
