"""Do the parts of a box fit each other? Its manifest, its stage graphs, and what a session feeds.

A seal shows that a box is as it was written; not that whoever wrote it meant well. So everything
that the runtime relies on is compared before a graph is built: contract with placeholders, outputs
with results, each input with what supplies it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llvq import graphs
from llvq.artifact import Box
from llvq.artifact.manifest import REQUANTIZE
from llvq.errors import ArtifactError, LlvqError
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import DECODING
from llvq.runtime.facts import DTYPE_OF, RunFacts
from llvq.runtime.pages import history_lengths
from llvq.sources import TensorSpec

# What the session takes out of a stage by name.
RESULTS = {
    "encode_text": "prompt_embeds",
    "encode_image": "image_latent",
    "denoise": "velocity",
    "decode_first": "decode_first.frames",
    "decode": "decode.frames",
}


@dataclass(frozen=True)
class StageSpec:
    """What a stage takes and gives, by name."""

    inputs: tuple[InputSpec, ...]
    outputs: Mapping[str, TensorSpec]


def spec_of(inputs: tuple[InputSpec, ...], outputs: Collection[str], document: Any) -> StageSpec:
    """What a stage takes and gives, by the document of its graph."""
    _, given = graphs.signature(document)
    return StageSpec(inputs, dict(zip(outputs, given, strict=True)))


def check_fit(box: Box) -> tuple[RunFacts, dict[str, StageSpec]]:
    """The facts and stages of a box whose parts fit. Raises ArtifactError listing what does not."""
    facts = _facts(box)
    names, described = box.manifest["stages"].keys(), box.manifest["contract"].keys()
    if differing := sorted(names ^ described):
        raise misfit(
            box, [f"stage {name} is not in both stages and contract" for name in differing]
        )
    stages = {name: _stage(box, name) for name in sorted(names)}
    problems = [
        *_flow(stages, facts),
        *_results(stages),
        *_loops(stages, facts),
        *_held(stages, facts),
    ]
    if problems:
        raise misfit(box, problems)
    return facts, stages


def misfit(box: Box, problems: Collection[str], *, where: str = "") -> ArtifactError:
    shown = list(problems)[:5]
    more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
    return ArtifactError(
        "the parts of the box do not fit each other",
        where=f"{box.path}   {where}".rstrip(),
        because="; ".join([*shown, *more]),
        fix=f"copy the box again from its source, or {REQUANTIZE}",
    )


def located(box: Box, error: LlvqError, name: str) -> ArtifactError:
    """An error of a part, told as one of the box."""
    part = error.what + (f" ({error.where})" if error.where else "")
    return misfit(box, [part + (f": {error.because}" if error.because else "")], where=name)


def _facts(box: Box) -> RunFacts:
    try:
        return RunFacts.from_dict(box.manifest["state"])
    except ArtifactError as error:
        raise located(box, error, "state") from error


def _stage(box: Box, name: str) -> StageSpec:
    outputs = box.manifest["stages"][name].get("outputs")
    contract = box.manifest["contract"][name]
    if not isinstance(contract, list):
        raise misfit(box, ["its contract is not a list"], where=f"stage {name}")
    if not isinstance(outputs, list) or not all(isinstance(item, str) for item in outputs):
        raise misfit(box, ["its outputs are not a list of names"], where=f"stage {name}")
    try:
        inputs = tuple(InputSpec.from_dict(spec) for spec in contract)
        taken, given = graphs.signature(box.graph(name))
    except LlvqError as error:
        raise located(box, error, f"stage {name}") from error
    if problems := [*_inputs(inputs, taken), *_outputs(outputs, given)]:
        raise misfit(box, problems, where=f"stage {name}")
    return StageSpec(inputs, dict(zip(outputs, given, strict=True)))


def _inputs(inputs: tuple[InputSpec, ...], taken: list[TensorSpec]) -> Iterator[str]:
    if len(inputs) != len({spec.name for spec in inputs}):
        yield "its contract has an input twice"
    if len(inputs) != len(taken):
        yield f"its contract has {len(inputs)} inputs, its graph {len(taken)}"
        return
    for spec, found in zip(inputs, taken, strict=True):
        if TensorSpec(spec.dtype, spec.sizes) != found:
            yield f"input {spec.name} is {spec} in the contract, {_text(found)} in the graph"


def _outputs(names: list[Any], given: list[TensorSpec]) -> Iterator[str]:
    if len(names) != len(set(names)):
        yield "it has an output twice"
    if len(names) != len(given):
        yield f"it has {len(names)} outputs, its graph returns {len(given)}"


def _flow(stages: Mapping[str, StageSpec], facts: RunFacts) -> Iterator[str]:
    """Every input has a supplier, and is what it supplies."""
    supplied = supplied_by_session(facts)
    for stage in stages.values():
        supplied |= {name: spec for name, spec in stage.outputs.items() if name not in supplied}
    state = {name for name, _ in facts.loops}
    chunks = facts.window_frames // facts.frames_per_chunk
    for name, stage in stages.items():
        for spec in stage.inputs:
            wanted = TensorSpec(spec.dtype, spec.sizes)
            held = spec.name in state or spec.rate == "state"
            if spec.name not in supplied and not held:
                yield f"input {spec.name} of {name} comes from nowhere"
            elif supplied.get(spec.name, wanted) != wanted:
                yield f"input {spec.name} of {name} is {spec}, not {_text(supplied[spec.name])}"
            if spec.name == "page_table" and set(spec.allowed) != set(history_lengths(chunks)):
                yield f"page_table of {name} is {spec}, for a window of {chunks} chunks"
        for output, found in stage.outputs.items():
            if supplied[output] != found:
                yield f"output {output} of {name} is {_text(found)}, not {_text(supplied[output])}"


def _results(stages: Mapping[str, StageSpec]) -> Iterator[str]:
    for name, output in RESULTS.items():
        if name in stages and output not in stages[name].outputs:
            yield f"stage {name} does not give {output}"


def _loops(stages: Mapping[str, StageSpec], facts: RunFacts) -> Iterator[str]:
    """State that a stage returns is what the next call of `decode` takes."""
    taken = {s.name: TensorSpec(s.dtype, s.sizes) for x in stages.values() for s in x.inputs}
    given = {name: spec for stage in stages.values() for name, spec in stage.outputs.items()}
    for source, target in facts.loops:
        if source not in taken or target not in given:
            yield f"loop {target} -> {source} is not of a stage"
        elif taken[source] != given[target]:
            yield f"loop {target} gives {_text(given[target])}, {source} is {_text(taken[source])}"


def _held(stages: Mapping[str, StageSpec], facts: RunFacts) -> Iterator[str]:
    """State that is written in place is of decoding alone, and one tensor for both stages."""
    held, supplied = dict[str, InputSpec](), supplied_by_session(facts)
    for name, stage in stages.items():
        for spec in stage.inputs:
            if spec.rate != "state":
                continue
            if name not in DECODING or spec.name in supplied or spec.allowed:
                yield f"input {spec.name} of {name} is {spec}, which nobody holds as state"
            elif held.setdefault(spec.name, spec) != spec:
                yield f"input {spec.name} of {name} is {spec}, not {held[spec.name]}"


def supplied_by_session(facts: RunFacts) -> dict[str, TensorSpec]:
    """Every tensor that does not come out of a stage, or that a session makes in its stead."""
    dtype, frames, table = facts.torch_dtype, facts.frames_per_chunk, torch.int64
    latent = (1, frames, facts.latent_channels, *facts.latent_hw)
    chunks = facts.window_frames // frames
    pages = {name: TensorSpec(DTYPE_OF[kind], shape) for name, kind, shape in facts.pages.tensors}
    positions = facts.window_frames if facts.relative_rope else frames
    return {
        **pages,
        "ids": TensorSpec(table, (1, facts.text_len)),
        "mask": TensorSpec(table, (1, facts.text_len)),
        "prompt_embeds": TensorSpec(dtype, (1, facts.text_len, facts.text_dim)),
        "image": TensorSpec(dtype, (1, 3, 1, *facts.pixel_hw)),
        "image_latent": TensorSpec(dtype, (1, 1, *latent[2:])),
        "timestep": TensorSpec(torch.float32, (1, frames)),
        "positions": TensorSpec(torch.float64, (positions,)),
        "page_table": TensorSpec(table, (chunks - 1,)),
        "slot": TensorSpec(table, ()),
        "kept_slot": TensorSpec(table, ()),
        "latent": TensorSpec(dtype, latent),
        "velocity": TensorSpec(dtype, latent),
        "sigma": TensorSpec(torch.float32, (1, frames)),
        "decode_frames": TensorSpec(table, (facts.latents_per_decode,)),
        "decoded": TensorSpec(table, ()),
    }


def _text(spec: TensorSpec) -> str:
    return f"{str(spec.dtype).removeprefix('torch.')} {list(spec.shape)}"
