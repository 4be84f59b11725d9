"""A specialization: everything that decides the machine code of one kernel, as data.

Two launches with equal specializations run the same binary. It is known without a GPU (tensors on
`meta` will do), so a box can carry every binary that its graphs launch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor

from llvq.canonical_json import dumps
from llvq.errors import KernelError

ALIGNMENT = 16  # bytes of a pointer, or a factor of an integer, that the compiler may rely on

TRITON_DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}

Argument = Tensor | int | float | None
Constant = int | float | bool | str | None


class Kernel(Protocol):
    """What `triton.jit` returns, as far as this package needs it."""

    arg_names: list[str]
    do_not_specialize: Sequence[int | str]
    __name__: str


class Launcher(Protocol):
    """Runs a kernel over a grid. What is not constant is given in the kernel's order; constants by
    name. An argument of None is a constant. `exact`: no product is fused with a sum, so that every
    fp32 operation rounds as PyTorch's does."""

    def __call__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *args: Argument,
        warps: int = 4,
        stages: int = 2,
        exact: bool = False,
        **constants: Constant,
    ) -> None: ...


@dataclass(frozen=True)
class Specialization:
    """`signature` has (parameter, Triton type) of each argument, `constants` the other parameters.

    `divisible` are the arguments, pointers and integers, that are multiples of 16.
    """

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    divisible: tuple[str, ...]
    warps: int
    stages: int
    exact: bool = False

    @property
    def name(self) -> str:
        """The kernel's name and a digest of all else; names a file."""
        return f"{self.kernel}.{sha256(dumps(astuple(self))).hexdigest()[:16]}"


def specialize(
    kernel: Kernel,
    args: tuple[Argument, ...],
    constants: Mapping[str, Constant],
    *,
    warps: int,
    stages: int,
    exact: bool = False,
) -> Specialization:
    """The specialization of one launch. Raises KernelError: an argument that no kernel takes."""
    given = dict(zip(_runtime_parameters(kernel, constants), args, strict=True))
    absent = {name: None for name, value in given.items() if value is None}
    present = {name: value for name, value in given.items() if value is not None}
    return Specialization(
        kernel.__name__,
        tuple((name, _type(kernel, name, value)) for name, value in present.items()),
        tuple(sorted({**constants, **absent}.items())),
        tuple(name for name, value in present.items() if _is_divisible(kernel, name, value)),
        warps,
        stages,
        exact,
    )


def _runtime_parameters(kernel: Kernel, constants: Mapping[str, Constant]) -> list[str]:
    return [name for name in kernel.arg_names if name not in constants]


def _type(kernel: Kernel, name: str, value: Argument) -> str:
    if isinstance(value, Tensor) and value.dtype in TRITON_DTYPES:
        return f"*{TRITON_DTYPES[value.dtype]}"
    if type(value) is int and -(2**31) <= value < 2**31:
        return "i32"
    if type(value) is float:
        return "fp32"
    shown = value.dtype if isinstance(value, Tensor) else repr(value)
    raise KernelError(
        f"kernel {kernel.__name__} cannot take {shown} as {name}",
        because="it is no tensor of a known dtype, 32-bit integer or float",
        fix="this is a bug of the op that launches it: please report it",
    )


def _is_divisible(kernel: Kernel, name: str, value: Argument) -> bool:
    """Pointers must be, so that one binary serves every tensor. Of integers it is noted, but for
    those that a kernel names in `do_not_specialize`: one binary serves all of them."""
    if isinstance(value, int):
        return name not in kernel.do_not_specialize and value % ALIGNMENT == 0
    if not isinstance(value, Tensor):
        return False
    if value.device.type != "meta" and value.data_ptr() % ALIGNMENT:
        raise KernelError(
            f"kernel {kernel.__name__} takes {name} at an address that is not a multiple of "
            f"{ALIGNMENT} bytes",
            because="it is a view into another tensor",
            fix="pass a tensor of its own (clone it)",
        )
    return True
