"""`llvq export --format onnx`: stages of a program as ONNX models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvq.errors import RecipeError

if TYPE_CHECKING:
    from llvq.cli.export import Request


def export_onnx(request: Request) -> None:
    raise RecipeError("--format onnx is not there yet", fix="export a box")
