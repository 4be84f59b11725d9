"""Write a compiled model as a folder: a program (`quantize`) or a box for a target (`export`).

Weights are streamed from the checkpoint through the weight plan, so memory does not follow the
size of the model. A program keeps everything that `export` needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import llvq
from llvq import graphs
from llvq.artifact import Box, BoxWriter
from llvq.backends.base import Target
from llvq.calibration import LayerFacts
from llvq.checks import Checks, record_checks
from llvq.compiler import Compiled, Stage, with_constants
from llvq.lowered import loops_of, lower_stages
from llvq.parts import Parts, all_parts, without_text_encoder
from llvq.passes import Report
from llvq.passes.lower import implementations_of
from llvq.recipe import recipe_from_dict
from llvq.runtime.contract import InputSpec
from llvq.runtime.fit import spec_of
from llvq.runtime.load import executable, op_table
from llvq.sources import TensorSource
from llvq.weights import WeightRecord
from llvq.weights_writer import write_shards

TORCH_RANGE = ">=2.11,<2.14"
Progress = Callable[[int, int], None]


def write_program(
    compiled: Compiled,
    source: TensorSource,
    path: str | Path,
    *,
    tokenizer: Path | None = None,
    calibration: Mapping[str, Any] | None = None,
    loras: Sequence[Mapping[str, Any]] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write a quantized program that any target can be exported from; gives its id.

    `calibration`: how facts that llvq itself found about linears came about, for the manifest.
    `loras`: what is merged into the weights of `source`, for the manifest.

    Raises OutputError (nothing is left behind), FormatError (NaN in a weight), CheckpointError.
    """
    documents = {name: graphs.dump(stage.graph) for name, stage in compiled.stages.items()}
    with BoxWriter(path, overwrite=overwrite) as writer:
        for name, document in documents.items():
            writer.add_json(f"graphs/{name}.json", document)
        records = list(compiled.weights.values())
        write_shards(
            records, with_constants(compiled, source), writer.adopt("weights"), progress=progress
        )
        if tokenizer is not None:
            writer.link("tokenizer/tokenizer.json", tokenizer)
        fields = _program_fields(compiled, documents)
        made = {"calibration": plain(calibration), "lora": plain(loras)}
        return writer.finish({**fields, **made})


def export_box(
    program: Box,
    target: Target,
    path: str | Path,
    *,
    text_encoder: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[str, Checks]:
    """Lower a program for a target and write the box with kernels and check vectors; gives its id.

    Neither needs the target's machine: check vectors are what the reference gives on the CPU.
    `progress` is told how many kernels are compiled, and of how many. Without `text_encoder` the
    box runs prompts whose embeddings are cached. Raises TargetError, OutputError, RecipeError,
    ArtifactError (what cannot be left out).
    """
    parts = all_parts(program) if text_encoder else without_text_encoder(program)
    recipe = recipe_from_dict(program.manifest["recipe"])
    lowered = lower_stages(_stages(program, parts), recipe, target)
    documents = {name: graphs.dump(stage.graph) for name, stage in lowered.stages.items()}
    specs = {name: spec_of(s.inputs, s.outputs, documents[name])
             for name, s in lowered.stages.items()}  # fmt: skip
    checks = record_checks(
        executable(program, "cpu", stages=documents, documents=documents, specs=specs)
    )
    with BoxWriter(path, overwrite=overwrite) as writer:
        for name, document in documents.items():
            writer.add_json(f"graphs/{name}.json", document)
        for file in parts.files:
            writer.link(file, program.file(file))
        for name, tensors in checks.vectors.items():
            writer.add_tensors(f"checks/{name}.safetensors", tensors)
        fields = _box_fields(target, lowered.stages, documents, checks)
        fields["state"] = _state(parts, lowered.stages)
        fields["passes"] = [*parts.fields["passes"], *map(_row, lowered.reports)]
        if target.chip is not None:
            fields["kernels"] = _write_kernels(writer, lowered.stages, target.chip, progress)
        return writer.finish({**parts.fields, **fields}), checks


def _stages(program: Box, parts: Parts) -> dict[str, Stage]:
    """The stages of a program that go into a box."""
    contract, stages = parts.fields["contract"], parts.fields["stages"]
    return {
        name: Stage(
            graphs.load(program.graph(name), device="meta"),
            tuple(InputSpec.from_dict(spec) for spec in contract[name]),
            tuple(stages[name]["outputs"]),
        )
        for name in stages
    }


def _state(parts: Parts, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The facts of a program, as they are of its lowered stages."""
    state = parts.fields["state"]
    return {**state, "loops": plain(loops_of(state["loops"], stages))}


def _contract(stages: Mapping[str, Stage]) -> dict[str, Any]:
    """What stages take and give, as a manifest says it."""
    return {
        "contract": {
            name: [plain(spec.to_dict()) for spec in stage.inputs] for name, stage in stages.items()
        },
        "stages": {name: {"outputs": list(stage.outputs)} for name, stage in stages.items()},
    }


def _box_fields(
    target: Target,
    stages: Mapping[str, Stage],
    documents: Mapping[str, Any],
    checks: Checks,
) -> dict[str, Any]:
    """What a box says that its program does not."""
    ops = sorted(set().union(*(graphs.ops_used(document) for document in documents.values())))
    modules = {name: stage.graph for name, stage in stages.items()}
    return {
        **_contract(stages),
        "kind": "box",
        "target": target.name,
        "numerics": target.numerics,
        "ops": op_table(ops),
        "implementations": implementations_of(modules),
        "kernels": None,
        "unchecked": dict(checks.skipped),
    }


def _write_kernels(
    writer: BoxWriter, stages: Mapping[str, Stage], chip: str, progress: Progress | None
) -> dict[str, Any]:
    # Only exporting for a GPU needs a compiler for one.
    from llvq.backends.triton.package import write_kernels

    modules = {name: stage.graph for name, stage in stages.items()}
    inputs = {name: stage.inputs for name, stage in stages.items()}
    return write_kernels(writer, modules, inputs, chip, progress)


def _program_fields(compiled: Compiled, documents: Mapping[str, Any]) -> dict[str, Any]:
    ops = sorted(set().union(*(graphs.ops_used(document) for document in documents.values())))
    return {
        "kind": "program",
        "target": None,
        "numerics": None,
        "versions": {"torch": TORCH_RANGE, "llvq": llvq.__version__},
        "ops": op_table(ops),
        **_contract(compiled.stages),
        "state": plain(compiled.facts.to_dict()),
        "recipe": plain(compiled.recipe.to_dict()),
        "passes": [_row(report) for report in compiled.reports],
        "model": plain(compiled.config.to_dict()),
        "unchecked": {},
        "left_out": {},
        "implementations": {},
        "kernels": None,
        "weights": {r.target: _record(r) for r in compiled.weights.values()},
    }


def _row(report: Report) -> Any:
    return plain(report.to_dict(timing=False))


def _record(record: WeightRecord) -> dict[str, Any]:
    kept: dict[str, Any] = {"op": record.op, "sources": list(record.sources)}
    kept |= {"block_rule": record.block_rule} if record.block_rule else {}
    kept |= {"factor": record.factor} if record.op == "scale" else {}
    return kept | ({"facts": [_known(facts) for facts in record.facts]} if record.facts else {})


def _known(facts: LayerFacts) -> dict[str, Any]:
    """What is known of one source of a weight, without what is not."""
    return {name: value for name, value in vars(facts).items() if value}


def plain(value: Any) -> Any:
    """Tuples as lists and dtypes by name: what JSON can hold."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
