"""A video in onnxruntime: llvq's session drives the models of `llvq export --format onnx`.

    llvq quantize model.pt
    llvq export model.nvfp4 --format onnx --dialect portable
    python -m examples.onnx_runtime model.nvfp4 model-onnx

A session calls stages by name and never asks what runs them. An exported stage differs in two ways:
bf16 is fp32, and `refresh` returns the page of a chunk instead of storing it. Both runs start from
the same noise; what is printed is how far their latents are apart: one activation that rounds to
the other side of an E2M1 boundary is enough to separate them by a few percent.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable, open_checked
from llvq.runtime.session import Prompt, Session


@dataclass(frozen=True)
class OnnxStage:
    """One model, called as the runtime calls a stage."""

    name: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    session: Any

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feed = {i.name: as_array(values[i.name]) for i in self.session.get_inputs()}
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, map(torch.from_numpy, self.session.run(None, feed)), strict=True))
        for name in [name for name in names if name.startswith("page.")]:
            page = as_bytes(values[name.replace("page.", "pages.")])
            page[:, :, values["slot"]] = found.pop(name).to(page.dtype)
        return found


def as_array(tensor: Tensor) -> Any:
    """bf16 is fp32 in the models, and FP8 its bytes."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else as_bytes(tensor)).numpy()


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def in_onnxruntime(program: Executable, folder: Path) -> Executable:
    """The same program, its stages run by onnxruntime."""
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    stages = {
        name: OnnxStage(
            name,
            stage.inputs,
            stage.outputs,
            onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=providers),
        )
        for name, stage in program.stages.items()
        if (folder / f"{name}.onnx").exists()
    }
    return replace(program, stages=stages)


def latents(program: Executable, chunks: int) -> list[Tensor]:
    """The latents of a short video with a random prompt."""
    (spec,) = program.stage("condition").inputs
    random = torch.Generator().manual_seed(0)
    prompt = Prompt(torch.randn(spec.sizes, generator=random).to(spec.dtype))
    session = Session(program, [prompt] * chunks, seed=1, latents_only=True)
    return [chunk.latents.float() for chunk in session]


def compare(program: Path, folder: Path, chunks: int = 3) -> list[float]:
    """The relative L2 distance of each chunk."""
    ours = executable(open_checked(program, kinds=("program",)), "cpu")
    theirs = in_onnxruntime(ours, folder)
    pairs = zip(latents(ours, chunks), latents(theirs, chunks), strict=True)
    return [((b - a).norm() / a.norm()).item() for a, b in pairs]


if __name__ == "__main__":
    for index, distance in enumerate(compare(Path(sys.argv[1]), Path(sys.argv[2]))):
        print(f"chunk {index}: latents are {distance:.2e} apart")
