"""`llvq export --format onnx`: stages of a program as ONNX models."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llvq.artifact import Box
    from llvq.backends.onnx.dialects import Dialect
    from llvq.backends.onnx.export import Exported
    from llvq.cli.export import Request

READERS = {
    "standard": "python -c \"from onnx.reference import ReferenceEvaluator as R; R('{model}')\"",
    "trt": "trtexec --onnx={model} --stronglyTyped",
    "portable": "python -c \"import onnxruntime as ort; ort.InferenceSession('{model}')\"",
}


def export_onnx(request: Request) -> None:
    """Write a folder of models in a dialect, and say what to type next."""
    from llvq.backends.onnx.dialects import DIALECTS
    from llvq.backends.onnx.folder import check_replaceable
    from llvq.backends.onnx.proto import onnx_package
    from llvq.cli.output import check_output
    from llvq.cli.table import note, stderr
    from llvq.recipe import unknown
    from llvq.runtime.load import open_checked

    name = request.dialect or "standard"
    if name not in DIALECTS:
        raise unknown("dialect", name, list(DIALECTS))
    onnx_package()
    path = request.out or Path(f"{request.program.resolve().stem}-onnx")
    check_output(path, force=request.force)
    check_replaceable(path, overwrite=request.force)
    with stderr().status("checking the program"):
        program = open_checked(request.program, kinds=("program",))
    exported = _write(program, DIALECTS[name], path, overwrite=request.force)
    for stage in exported.left_out:
        note(f"note: {stage} is not exported: its results are inputs of the models")
    _print(request, path, name, exported)


def _write(program: Box, dialect: Dialect, path: Path, *, overwrite: bool) -> Exported:
    """Behind a progress bar."""
    from llvq.backends.onnx.export import export
    from llvq.cli.table import byte_progress

    with byte_progress() as bar:
        task = bar.add_task("weights", total=None)
        return export(
            program,
            dialect,
            path,
            overwrite=overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _print(request: Request, path: Path, dialect: str, exported: Exported) -> None:
    from llvq.backends.onnx.dialects import OPSET
    from llvq.cli.table import human, print_json, print_table

    if request.json:
        fields = {"folder": str(path), "dialect": dialect, "opset": OPSET}
        counts = {"nodes": dict(exported.nodes), "data_bytes": exported.data_bytes}
        print_json({**fields, **counts, "left_out": list(exported.left_out)})
        return
    rows = [(f"{stage}.onnx", nodes) for stage, nodes in exported.nodes.items()]
    print_table("ONNX models", ("model", "nodes"), rows)
    print(f"{path}   dialect {dialect}, opset {OPSET}, weights {human(exported.data_bytes)}")
    print(next_step(path, dialect, list(exported.nodes)))


def next_step(path: Path, dialect: str, stages: list[str]) -> str:
    """A line that opens a model where the dialect is read."""
    model = "denoise.onnx" if "denoise" in stages else f"{stages[0]}.onnx"
    return f"next: cd {shlex.quote(str(path))} && {READERS[dialect].format(model=model)}"
