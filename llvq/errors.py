"""Every error llvq raises for a user: what happened, where, because of what, and how to fix it.

One class per kind. A kind is the word in brackets of the first line, and what a script can catch.
"""

from __future__ import annotations


class LlvqError(Exception):
    """Base of all user errors. `str()` gives the four lines; an empty line is left out."""

    kind = "error"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        because: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.because, self.fix = what, where, because, fix
        super().__init__(what)

    def __str__(self) -> str:
        rows = (("at", self.where), ("because", self.because), ("fix", self.fix))
        details = [f"  {label:<8} {text}" for label, text in rows if text]
        return "\n".join([f"error[{self.kind}]: {self.what}", *details])


class FormatError(LlvqError, ValueError):
    """A tensor cannot be held in a number format (K not a multiple of 16, NaN, wrong shape)."""

    kind = "format"


class CheckpointError(LlvqError, ValueError):
    """A file is not the checkpoint it should be: unknown kind, missing, surplus, misshapen keys."""

    kind = "checkpoint"


class RecipeError(LlvqError, ValueError):
    """A recipe or an option names something that does not exist or does not fit."""

    kind = "recipe"


class CaptureError(LlvqError, RuntimeError):
    """`torch.export` could not capture the model as asked."""

    kind = "capture"


class MissError(LlvqError, RuntimeError):
    """A rewrite rule left a site unrewritten that no exclusion and no tolerated miss covers."""

    kind = "miss"


class SpecError(LlvqError, RuntimeError):
    """A graph is not legal at the level it claims."""

    kind = "spec"


class ArtifactError(LlvqError, RuntimeError):
    """A box is damaged, of another version, or for another machine."""

    kind = "artifact"


class ContractError(LlvqError, ValueError):
    """A tensor handed to a compiled graph is not what the graph was compiled for."""

    kind = "contract"


class TargetError(LlvqError, RuntimeError):
    """A target is unknown, or cannot run an operation of the program."""

    kind = "target"


class KernelError(LlvqError, RuntimeError):
    """A kernel is missing, cannot be built or launched, or fails its self-check."""

    kind = "kernel"


class CacheError(LlvqError, ValueError):
    """A KV cache layout or a page request that cannot be honoured."""

    kind = "cache"


class SessionError(LlvqError, RuntimeError):
    """A video could not be generated: wrong request, cancelled, or a failed stage."""

    kind = "session"


class OutputError(LlvqError, OSError):
    """A result could not be written (unwritable path, disk full)."""

    kind = "output"
