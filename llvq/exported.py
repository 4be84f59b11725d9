"""A model of your own: `torch.export` it, and the same passes quantize it.

Nothing here knows a model. A program without declared KV states keeps its attention as it is; one
whose inputs all change with every call becomes a single stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram

from llvq.capture import from_exported
from llvq.compiler import stages_of, with_weights
from llvq.errors import ContractError
from llvq.passes import PIPELINE, Options, Pass, Report, check_tolerances, run
from llvq.program import Program
from llvq.recipe import Recipe
from llvq.runtime.contract import InputSpec, Rate, check
from llvq.runtime.executable import CompiledStage
from llvq.sources import DictSource


@dataclass(frozen=True)
class Quantized:
    """A rewritten program, the books of its passes, and the export that holds its weights."""

    program: Program
    reports: tuple[Report, ...]
    exported: ExportedProgram

    def text(self) -> str:
        """Every stage, one line per node."""
        return self.program.text()

    def module(self, device: str = "cpu") -> QuantizedModule:
        """The program with its weights: NVFP4 where the recipe says so."""
        tensors = {**self.exported.state_dict, **self.program.constants}
        source = DictSource({name: tensor.detach() for name, tensor in tensors.items()})
        stages = with_weights(stages_of(self.program), self.program.weights, source, device)
        return QuantizedModule(self.program, stages, self.exported.call_spec.out_spec)


class QuantizedModule(nn.Module):
    """Runs every stage of a program in order; called like the module that was exported."""

    def __init__(self, program: Program, stages: Mapping[str, CompiledStage], tree: Any) -> None:
        super().__init__()
        self.inputs, self.outputs, self.tree = program.inputs, program.outputs, tree
        self.stages = dict(stages)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Tensors by position, in the order of the export, or by name; gives what it returned.

        Raises ContractError for a tensor that the program was not compiled for.
        """
        values = bind(self.inputs, args, kwargs)
        for stage in self.stages.values():
            values |= stage(values)
        return pytree.tree_unflatten([values[name] for name in self.outputs], self.tree)


def quantize(
    exported: ExportedProgram,
    recipe: Recipe,
    *,
    rates: Mapping[str, Rate] | None = None,
    options: Options | None = None,
    pipeline: tuple[Pass, ...] = PIPELINE,
) -> Quantized:
    """Rewrite an exported program (static shapes, export IR, not decomposed) by a recipe.

    `rates` says how often inputs change ("prompt", "step", ...), and cuts the program into stages;
    an input not named changes with every call. Raises CaptureError, MissError, SpecError,
    RecipeError.
    """
    check_tolerances(pipeline, recipe)
    program = from_exported(exported, rates=rates or {})
    result = run(program, recipe, pipeline, options)
    return Quantized(program, tuple(result.reports), exported)


def bind(
    specs: tuple[InputSpec, ...], args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Inputs by name, checked. Raises ContractError."""
    if len(args) > len(specs):
        raise ContractError(
            f"the program takes {len(specs)} tensors, not {len(args)}",
            fix=f"pass {', '.join(spec.name for spec in specs)}",
        )
    values = {spec.name: tensor for spec, tensor in zip(specs, args, strict=False)}
    values |= kwargs
    check(specs, values, stage="module")
    return values
