"""Targets: the machines that llvq compiles for, and what each can run.

A target is explicit and goes into the manifest. `supports` answers with None or with the reason
why not; nothing falls back by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvq.dialect import DIALECT
from llvq.errors import TargetError


@dataclass(frozen=True)
class Target:
    """One machine kind: its device, the numerics it computes in, and its implementation."""

    name: str
    device: str
    numerics: str
    implementation: str
    ops: frozenset[str]

    def supports(self, op: str) -> str | None:
        """None, or why the llvq op `op` cannot run here."""
        return None if op in self.ops else f"{self.name} has no implementation of llvq.{op}"


CPU = Target("cpu", "cpu", "w4a4-emulated", "reference", frozenset(DIALECT))
TARGETS = {target.name: target for target in (CPU,)}
PLANNED = ("sm_90a", "sm_100a", "sm_103a", "sm_120a")


def find_target(name: str) -> Target:
    """A target by name; TargetError names what exists."""
    if name in TARGETS:
        return TARGETS[name]
    planned = name in PLANNED
    raise TargetError(
        f"no code generation for target {name!r}" if planned else f"no target {name!r}",
        because="its kernels are not written yet" if planned else None,
        fix=f"use one of {', '.join(TARGETS)}",
    )
