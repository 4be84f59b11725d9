"""What every test of an op needs: inputs by seed, torch's own op checks, poisoned memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from llvq.dialect import Op

OP_CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(11)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return make


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What is allocated and not written holds NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def op_check(op: Op, args: tuple[Any, ...]) -> None:
    """`torch.library.opcheck`; its schema test multiplies, which fp8 cannot on every device."""
    leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    results = pytree.tree_leaves(op.overload(*args))
    has_fp8 = any(
        leaf.dtype == torch.float8_e4m3fn for leaf in (*leaves, *results) if leaf is not None
    )
    skipped = {"test_schema", "test_aot_dispatch_dynamic"} if has_fp8 else set()
    torch.library.opcheck(op.overload, args, test_utils=sorted({*OP_CHECKS} - skipped))


def as_bytes(value: Tensor) -> Tensor:
    return value.detach().clone().reshape(-1).view(torch.uint8)


@pytest.fixture
def opcheck() -> Callable[[Op, tuple[Any, ...]], None]:
    return op_check


@pytest.fixture
def check_op() -> Callable[..., Any]:
    """Run a pure op by its reference and by torch; both must agree, and the fake with both."""

    def check(op: Op, *args: Any) -> Any:
        op_check(op, args)
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        before = [as_bytes(t) for t in tensors]
        expected, found = op.reference(*args), op.overload(*args)
        assert all(torch.equal(as_bytes(t), old) for t, old in zip(tensors, before, strict=True))
        faked = op.overload(*pytree.tree_map_only(Tensor, lambda t: t.to("meta"), args))
        leaves = [pytree.tree_leaves(value) for value in (expected, found, faked)]
        for real, called, fake in zip(*leaves, strict=True):
            assert called.dtype == real.dtype == fake.dtype
            assert called.shape == real.shape == fake.shape
            assert called.stride() == fake.stride()
            assert torch.equal(as_bytes(called), as_bytes(real))
        return found

    return check
