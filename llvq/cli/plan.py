"""`llvq plan`: what a model will take of a machine, before anything is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llvq.cli import options
from llvq.errors import RecipeError

if TYPE_CHECKING:
    from llvq.artifact import Box
    from llvq.compiler import Compiled
    from llvq.models.config import ModelConfig
    from llvq.plan import Plan
    from llvq.runtime.executable import Streamed

GIB, GB = 2**30, 10**9
COUNTED = (
    "workspace: what stages allocate, in pools that PyTorch keeps: of each stream, and of CUDA\n"
    "graphs, whose recording gives back what is free. The context of a GPU, kernels, and scratch\n"
    "of libraries come on top."
)
# Bytes per second from pinned memory, of PCIe 4.0 and 5.0 with 16 lanes.
LINKS = {"PCIe 4.0": 25e9, "PCIe 5.0": 50e9}
LAYERS_SHOWN = 3
OPS_SHOWN = 3
DEFAULT_TARGET = "sm_100a"
BUILTIN = ("longlive2-5b", "self-forcing-1.3b", "longlive1-1.3b", "tiny")


def plan(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL|PROGRAM|BOX]", help="Default: --model, with no files."),
    ] = None,
    model: Annotated[
        str, typer.Option(help=f"Sizes of a known model: {', '.join(BUILTIN)}.")
    ] = BUILTIN[0],
    recipe: options.RecipeName = "longlive2-nvfp4",
    height: options.Height = None,
    width: options.Width = None,
    target: Annotated[
        str | None, typer.Option(help=f"Default: that of the box, or {DEFAULT_TARGET}.")
    ] = None,
    numerics: Annotated[
        str | None, typer.Option(help="w4a4, w4a8, w4a16, ... Default: the target's first.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", min=0, help="Say whether it fits.")
    ] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="With weights in the memory of the host.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Plan memory: weights, KV pages, VAE state and workspace, without touching a weight.

    For the chip of a GPU, a roofline estimates the time of each op from the vendor's datasheet.

    \b
      llvq plan --memory 80
      llvq plan --model self-forcing-1.3b --memory 24
      llvq plan --height 480 --width 832 --target sm_90a --numerics w4a16
      llvq plan --target sm_90a --memory 8 --low-memory
      llvq plan model_bf16.pt --memory 80
      llvq plan model.llvq --json
    """
    from llvq.backends.base import find_target
    from llvq.cli.table import print_json
    from llvq.plan import plan_box, plan_compiled

    find_target(target or DEFAULT_TARGET, numerics)
    size = options.video_size(height, width)
    source: Box | Compiled
    if path is not None and (path / "manifest.json").is_file():
        source = _open_box(path, size)
        chosen = target or source.manifest["target"] or DEFAULT_TARGET
        made = plan_box(source, target=chosen, numerics=numerics, low_memory=low_memory)
    else:
        source = _compile(_config(path, model, size), recipe)
        made = plan_compiled(
            source, target=target or DEFAULT_TARGET, numerics=numerics, low_memory=low_memory
        )
    if json:
        print_json({**made.to_dict(), "memory": _verdict(made, memory)})
    else:
        _show(made, memory)


def _open_box(path: Path, size: tuple[int, int] | None) -> Box:
    from llvq.runtime.load import open_checked

    if size is not None:
        raise RecipeError(
            "a program has one size of video",
            where=str(path),
            because="it was compiled for it",
            fix="leave out --height and --width, or plan the checkpoint",
        )
    return open_checked(path, kinds=("program", "box"), hash_weights=False)


def _config(path: Path | None, model: str, size: tuple[int, int] | None) -> ModelConfig:
    from llvq.checkpoints.model import open_model
    from llvq.checkpoints.random import tiny_config
    from llvq.models.config import PUBLISHED
    from llvq.recipe import unknown

    if path is not None:
        return open_model(path, size=size).config
    if model not in BUILTIN:
        raise unknown("model", model, list(BUILTIN))
    config = tiny_config() if model == "tiny" else PUBLISHED[model]
    return config.at(*size) if size is not None else config


def _compile(config: ModelConfig, recipe: str) -> Compiled:
    from llvq.cli.table import note, stderr
    from llvq.compiler import compile_model
    from llvq.recipe import load_recipe

    chosen, start = load_recipe(recipe), time.perf_counter()
    note(f"capturing {config.dit.num_layers} layers, no weights, recipe {chosen.name} ...")
    with stderr().status("capturing and rewriting"):
        compiled = compile_model(config, chosen)
    note(f"compiled in {time.perf_counter() - start:.1f} s")
    return compiled


def _verdict(plan: Plan, memory: float | None) -> dict[str, Any] | None:
    if memory is None:
        return None
    spare = int(memory * GIB) - plan.total
    return {"bytes": int(memory * GIB), "fits": spare >= 0, "spare": spare}


def _show(plan: Plan, memory: float | None) -> None:
    from llvq.cli.roofline_table import print_roofline
    from llvq.cli.table import print_table

    print(f"{plan.target}, numerics {plan.numerics}\n")
    print_table("", ("memory", "GB", "GiB"), _memory_rows(plan))
    print(COUNTED)
    if plan.streaming is not None:
        _show_streaming(plan.streaming)
    if plan.kv is not None:
        print(
            f"KV pages: {plan.kv.kv_format}, {plan.kv.slots} chunks of "
            f"{plan.kv.bytes_per_chunk / GB:.3f} GB; {plan.kv.compression:.2f}x smaller than "
            f"{plan.kv.bytes_plain / GB:.2f} GB"
            + (f", {plan.kv.kept / GB:.3f} GB kept in the model's dtype" if plan.kv.kept else "")
        )
    columns = ("stage", "runs", "most frequent ops", "nodes", "workspace GB")
    print_table("", columns, _stage_rows(plan), left=3)
    print_table("", ("linears kept by the recipe", "layers", "count"), _glob_rows(plan), left=2)
    verdict = _verdict(plan, memory)
    if verdict is not None:
        word = "fits, with" if verdict["fits"] else "does not fit: it lacks"
        print(f"\n{memory:g} GiB {word} {abs(verdict['spare']) / GIB:.2f} GiB")
    if plan.roofline is not None:
        print_roofline(plan.roofline)


def _show_streaming(streaming: Streamed) -> None:
    from llvq.cli.table import print_table

    print(
        f"low memory: {streaming.host / GB:.2f} GB of weights stay in the memory of the host, and "
        f"pass\nthrough {streaming.slots / GB:.2f} GB on the device"
    )
    rows = [(name, f"{n / GB:.3f}", *(f"{n / rate * 1e3:.1f}" for rate in LINKS.values()))
            for name, n in streaming.copied.items() if n]  # fmt: skip
    links = (f"ms at {rate / GB:.0f} GB/s ({name})" for name, rate in LINKS.items())
    print_table("", ("copied per call, estimate", "GB", *links), rows)
    print("an estimate, not a measurement; copies overlap with what the device computes")


def _memory_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    groups = (("weights", plan.weights), ("held", plan.state), ("workspace", plan.workspace))
    for group, rows in groups:
        for name, nbytes in rows.items():
            yield _row(f"{group}: {name}", nbytes)
        if len(rows) > 1:
            yield _row(f"{group}, all", sum(rows.values()))
    if plan.streaming is not None:
        yield _row("weights on the device, and room for others", plan.held)
    if plan.encoding:
        yield _row("encoding prompts, nothing else loaded", plan.encoding)
    yield _row("loading", plan.loading)
    yield _row("generating", plan.generating)
    if plan.image:
        yield _row("beginning with an image, more", plan.image)
    yield _row("total at the peak", plan.total)
    if plan.decoding:
        yield _row("of it to decode: weights, held, workspace", plan.decoding)


def _row(name: str, nbytes: int) -> tuple[str, str, str]:
    return name, f"{nbytes / GB:.3f}", f"{nbytes / GIB:.3f}"


def _stage_rows(plan: Plan) -> Iterable[tuple[str, str, str, int, str]]:
    for stage in plan.stages:
        ops = [f"{n} {op.removesuffix('.default')}" for op, n in stage.ops.items()][:OPS_SHOWN]
        yield stage.name, stage.runs, ", ".join(ops), stage.nodes, f"{stage.workspace / GB:.3f}"


def _glob_rows(plan: Plan) -> Iterable[tuple[str, str, int]]:
    for glob, layers in plan.excluded.items():
        more = ", ..." if len(layers) > LAYERS_SHOWN else ""
        yield glob, ", ".join(layers[:LAYERS_SHOWN]) + more, len(layers)
