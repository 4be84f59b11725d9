"""llvq: a compiler that quantizes long-video diffusion models to NVFP4, and its runtime.

Names are imported when they are first used: a deployment that only loads boxes never imports the
compiler, and `llvq --help` never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llvq.api import quantize_checkpoint
    from llvq.box import export_box, write_program
    from llvq.checkpoints.model import open_model
    from llvq.compiler import compile_model
    from llvq.exported import quantize
    from llvq.quality.compare import compare
    from llvq.recipe import Recipe, load_recipe
    from llvq.runtime.load import load
    from llvq.runtime.session import Session

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "Session",
    "compare",
    "compile_model",
    "export_box",
    "load",
    "load_recipe",
    "open_model",
    "quantize",
    "quantize_checkpoint",
    "write_program",
]

_MODULES = {
    "Recipe": "llvq.recipe",
    "Session": "llvq.runtime.session",
    "compile_model": "llvq.compiler",
    "export_box": "llvq.box",
    "load": "llvq.runtime.load",
    "load_recipe": "llvq.recipe",
    "open_model": "llvq.checkpoints.model",
    "compare": "llvq.quality.compare",
    "quantize": "llvq.exported",
    "quantize_checkpoint": "llvq.api",
    "write_program": "llvq.box",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'llvq' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
