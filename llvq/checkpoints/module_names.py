"""From the keys of a training checkpoint to the names that the module itself gives its tensors.

Source: the public LongLive-2.0 scripts that write and load {generator, generator_ema,
generator_optimizer, step}.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llvq.errors import CheckpointError

WRAPPERS = frozenset(("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"))
OUTER = frozenset(("model", "module", "diffusion_model"))
ROOTS = ("generator", "model")


def root_of(names: Sequence[str], *, use_ema: bool, path: Path) -> tuple[str, tuple[str, ...]]:
    """The outermost key under which the denoiser is ("" if there is none), and notes.

    Raises CheckpointError if there are no EMA weights and they are asked for, or two denoisers.
    """
    groups = {name.split(".")[0] for name in names}
    if use_ema and "generator_ema" not in groups:
        raise CheckpointError(
            f"{path.name} has no EMA weights",
            where=str(path),
            because=f"there is no `generator_ema` among {', '.join(sorted(groups)[:8])}",
            fix="leave out the EMA option",
        )
    if use_ema:
        return "generator_ema", ()
    if "generator_ema" in groups and "generator" not in groups:
        return "generator_ema", ("the file has EMA weights only: these are used",)
    roots = [root for root in ROOTS if root in groups]
    if len(roots) > 1:
        raise CheckpointError(
            f"{path.name} may hold two denoisers",
            where=str(path),
            because=f"there are {' and '.join(f'`{root}`' for root in roots)}",
            fix="save the one that you mean alone: torch.save(checkpoint['generator'], 'model.pt')",
        )
    there = ("the file also has EMA weights: --use-ema takes them",)
    return "".join(roots), there if "generator_ema" in groups else ()


def module_names(names: Sequence[str], root: str, path: Path) -> dict[str, str]:
    """Name in the module -> name in the file, for what is under `root`."""
    renamed: dict[str, str] = {}
    for name in names:
        group, _, inner = name.partition(".")
        if root and group != root:
            continue
        short = unwrapped(inner if root else name)
        if short in renamed:
            raise CheckpointError(
                f"{short} is there twice",
                where=str(path),
                because=f"{renamed[short]} and {name} are one tensor of the model",
                fix="re-save the checkpoint with one name for each tensor",
            )
        renamed[short] = name
    return renamed


def unwrapped(name: str) -> str:
    """The name without what FSDP, activation checkpointing and torch.compile put into it."""
    inner = [part for part in name.split(".") if part not in WRAPPERS]
    while inner and inner[0] in OUTER:
        inner = inner[1:]
    return ".".join(inner)
