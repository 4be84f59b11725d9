"""Lowered graphs of a denoiser and their kernels, made on any machine and without a weight.

    python -m benchmarks.prepared --target sm_90a --out build/prepared

compiles what `benchmarks.denoise --prepared build/prepared` measures, so that a machine with a GPU
spends no time on it. Small: graphs are compressed, and a variant has a few dozen kernels.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llvq import graphs
from llvq.artifact.kernels import read_table
from llvq.backends.base import Target, find_target
from llvq.backends.triton.specialize import Launcher
from llvq.checkpoints.random import tiny_config
from llvq.compiler import compile_model
from llvq.errors import LlvqError
from llvq.lowered import lower_stages
from llvq.models.config import LONGLIVE2_5B, ModelConfig
from llvq.recipe import NVFP4, KvRecipe
from llvq.runtime.bind import bind
from llvq.runtime.box_kernels import load_kernels
from llvq.runtime.contract import InputSpec
from llvq.runtime.executable import CompiledStage, Executable, RunFacts
from llvq.runtime.fold import attach_weights
from llvq.runtime.kernels import Kernels
from llvq.runtime.self_check import self_check
from llvq.weights import WeightRecord

DENOISER = ("condition", "modulate", "denoise", "refresh")
DOCUMENT = "graphs.json.gz"


@dataclass(frozen=True)
class Variant:
    """One way to compute: numerics, and the format of KV pages."""

    numerics: str
    kv: str = "nvfp4"

    @property
    def name(self) -> str:
        return f"{self.numerics}, {self.kv} pages"

    @property
    def folder(self) -> str:
        return f"{self.numerics}-{self.kv}"


# The three last ones are compared with each other.
HOPPER = (
    Variant("w4a4-emulated"),
    Variant("w4a16"),
    Variant("w4a8", "none"),
    Variant("w4a8", "fp8"),
    Variant("w4a8"),
)


@dataclass(frozen=True)
class Prepared:
    """The stages of a denoiser, lowered for a target, as data."""

    target: str
    variant: Variant
    documents: Mapping[str, Any]
    inputs: Mapping[str, tuple[InputSpec, ...]]
    outputs: Mapping[str, tuple[str, ...]]
    facts: RunFacts
    records: Mapping[str, WeightRecord]


def denoiser_config(*, tiny: bool) -> ModelConfig:
    """5B at 704x1280, or the tiny model; no VAE and no text encoder."""
    return replace(tiny_config() if tiny else LONGLIVE2_5B, vae=None, text=None)


def prepare(config: ModelConfig, variant: Variant, target: str) -> Prepared:
    """Capture, rewrite and lower; no weight is read. Raises LlvqError."""
    recipe = replace(NVFP4, kv=KvRecipe(variant.kv))
    compiled = compile_model(config, recipe)
    captured = {name: compiled.stages[name] for name in DENOISER}
    stages = lower_stages(captured, recipe, find_target(target, variant.numerics)).stages
    return Prepared(
        target,
        variant,
        {name: graphs.dump(stage.graph) for name, stage in stages.items()},
        {name: stage.inputs for name, stage in stages.items()},
        {name: stage.outputs for name, stage in stages.items()},
        compiled.facts,
        compiled.weights,
    )


def executable(
    prepared: Prepared,
    weights: Mapping[str, torch.Tensor],
    device: torch.device,
    launch: Launcher | None,
) -> Executable:
    """The stages on a device, with weights and, on a GPU, with what launches their kernels."""
    built = {n: graphs.load(doc, device=device) for n, doc in prepared.documents.items()}
    if launch is not None:
        for gm in built.values():
            bind(gm, launch)
    attach_weights(built, weights)
    stages = {
        name: CompiledStage(name, gm, prepared.inputs[name], prepared.outputs[name])
        for name, gm in built.items()
    }
    return Executable(stages, prepared.facts, device)


def save(prepared: Prepared, folder: Path) -> None:
    """One compressed document in `folder`."""
    document = {
        "target": prepared.target,
        "variant": [prepared.variant.numerics, prepared.variant.kv],
        "documents": prepared.documents,
        "inputs": {n: [spec.to_dict() for spec in each] for n, each in prepared.inputs.items()},
        "outputs": prepared.outputs,
        "facts": prepared.facts.to_dict(),
        "records": [_plain(record) for record in prepared.records.values()],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / DOCUMENT, "wt", encoding="ascii") as file:
        json.dump(document, file, default=str)


def load(folder: Path) -> Prepared:
    with gzip.open(folder / DOCUMENT, "rt", encoding="ascii") as file:
        document = json.load(file)
    records = [_record(row) for row in document["records"]]
    return Prepared(
        document["target"],
        Variant(*document["variant"]),
        document["documents"],
        {n: tuple(map(InputSpec.from_dict, each)) for n, each in document["inputs"].items()},
        {name: tuple(names) for name, names in document["outputs"].items()},
        RunFacts.from_dict(document["facts"]),
        {record.target: record for record in records},
    )


def _plain(record: WeightRecord) -> list[Any]:
    assert not record.facts and record.factor == 1.0, "of an uncalibrated program"
    dtype = None if record.dtype is None else str(record.dtype).removeprefix("torch.")
    return [record.target, record.op, record.sources, dtype, record.block_rule]


def _record(row: Sequence[Any]) -> WeightRecord:
    target, op, sources, dtype, rule = row
    return WeightRecord(target, op, tuple(sources), dtype and getattr(torch, dtype), rule)


@dataclass(frozen=True)
class KernelFolder:
    """Stands in for a box where kernels are written to, and read from."""

    path: Path

    def file(self, name: str) -> Path:
        return self.path / name

    def add_bytes(self, name: str, data: bytes) -> None:
        self.file(name).parent.mkdir(parents=True, exist_ok=True)
        self.file(name).write_bytes(data)

    def add_json(self, name: str, document: Any) -> None:
        self.add_bytes(name, json.dumps(document).encode("ascii"))


def write_kernels(prepared: Prepared, folder: Path, tell: Callable[[int, int], None]) -> None:
    """Compile what the graphs launch. Raises TargetError."""
    from llvq.backends.triton import package

    chip = _target(prepared).chip
    assert chip is not None
    modules = {n: graphs.load(doc, device="meta") for n, doc in prepared.documents.items()}
    writer: Any = KernelFolder(folder)
    package.write_kernels(writer, modules, prepared.inputs, chip, tell)


def read_kernels(
    prepared: Prepared, folder: Path, device: torch.device, *, check: bool
) -> Kernels | None:
    """The kernels of a folder on a GPU; None where there are none.

    With `check` they are held against the references of their ops first. Raises KernelError.
    """
    chip, box = _target(prepared).chip, KernelFolder(folder)
    if chip is None or not (folder / "kernels" / chip).is_dir():
        return None
    anything: Any = box
    table = read_table(anything, chip)
    kernels = load_kernels(anything, table, chip, device)
    if check:
        self_check(table.checks, kernels, device)
    return kernels


def _target(prepared: Prepared) -> Target:
    return find_target(prepared.target, prepared.variant.numerics)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="*", help="folders of variants, as w4a8-nvfp4")
    options = parser.parse_args(given)
    config, failed = denoiser_config(tiny=options.tiny), 0
    for variant in HOPPER:
        if options.only and variant.folder not in options.only:
            continue
        folder = options.out / variant.folder
        try:
            write(prepare(config, variant, options.target), folder)
        except LlvqError as error:
            print(f"{variant.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{folder}: {size / 1e6:.1f} MB", flush=True)
    return 1 if failed else 0


def write(prepared: Prepared, folder: Path) -> None:
    """Graphs, and for a GPU the kernels that they launch. Raises TargetError."""
    save(prepared, folder)
    if _target(prepared).chip is not None:
        write_kernels(prepared, folder, lambda done, of: None)


if __name__ == "__main__":
    sys.exit(main())
