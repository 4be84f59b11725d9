"""llvq in `benchmarks.denoise`: each variant alone, then those of one numerics in turns."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.denoise_ceilings import Ceiling, best
from benchmarks.denoise_models import Given, Llvq, poisoned, relative_l2
from benchmarks.denoise_ops import OpTime, costs, time_ops
from benchmarks.denoise_rollout import errors_by_chunk, roll_llvq
from benchmarks.denoise_run import Run, Wanted
from benchmarks.device_memory import give_back
from benchmarks.prepared import Prepared, Variant, executable, load, prepare, read_kernels
from benchmarks.random_weights import carry_out
from benchmarks.report import note
from llvq.bench.timing import Spread
from llvq.errors import LlvqError


def time_variants(
    state: Run,
    sources: Mapping[str, Tensor],
    given: Given,
    wanted: Wanted,
    measured: Sequence[Ceiling],
) -> None:
    """Each variant alone, then those that differ in their pages alone, in turns."""
    turns: dict[Variant, tuple[Llvq, Callable[[], Any]]] = {}
    compared = _compared(state.options.variants)
    for variant in state.options.variants:
        note(variant.name)
        try:
            made = _time_variant(state, variant, sources, given, wanted, measured)
        except (LlvqError, OSError, RuntimeError) as error:
            # The other variants are worth the time that the device has been taken for.
            traceback.print_exc()
            state.found["failed"][variant.name] = str(error).strip()
            continue
        if variant in compared:
            turns[variant] = made
        del made
        give_back([state.device])
    if len(turns) > 1:
        note("pages in turns")
        state.found["pages"] = _in_turns(state, turns)


def _compared(variants: Sequence[Variant]) -> list[Variant]:
    """Those of the numerics that most variants have."""
    counts = [v.numerics for v in variants]
    numerics = max(counts, key=counts.count)
    return [variant for variant in variants if variant.numerics == numerics]


def _in_turns(
    state: Run, turns: Mapping[Variant, tuple[Llvq, Callable[[], Any]]]
) -> list[dict[str, Any]]:
    """The best median of each over several rounds."""
    times: dict[Variant, list[Spread]] = {variant: [] for variant in turns}
    for _ in range(state.options.rounds):
        for variant, (_, call) in turns.items():
            times[variant].append(state.forward(call))
    return [
        {
            "kv": variant.kv,
            "bytes": model.page_bytes,
            "time": asdict(min(times[variant], key=lambda spread: spread.median)),
            "rounds": [asdict(spread) for spread in times[variant]],
        }
        for variant, (model, _) in turns.items()
    ]


def _time_variant(
    state: Run,
    variant: Variant,
    sources: Mapping[str, Tensor],
    given: Given,
    wanted: Wanted,
    measured: Sequence[Ceiling],
) -> tuple[Llvq, Callable[[], Any]]:
    prepared, launch, began = *_prepared(state, variant), time.perf_counter()
    before = state.held()
    weights = carry_out(prepared.records, sources)
    model = Llvq(executable(prepared, weights, state.device, launch), given)
    del weights
    model.fill()
    found = model.forward().clone()
    setup = time.perf_counter() - began
    held = {"weights": model.weight_bytes, "pages": model.page_bytes}
    state.found["errors"].append(_errors(variant, model, found, wanted))
    model.written = []  # views into projections, which would keep them whole
    peak = state.peak_of(model.forward, before)
    eager = asdict(state.forward(model.forward))
    row = {"name": f"llvq {variant.name}, eager", "time": eager, **held, "peak": peak}
    state.found["forwards"].append(row | {"note": f"set up in {setup:.0f} s"})
    call, graphed = model.forward, _graphed(state, model, found)
    if graphed is not None:
        call, difference = graphed
        row = {"name": f"llvq {variant.name}, CUDA graph", "time": asdict(state.forward(call))}
        told = {"note": f"differs from eager by {difference:.1e}"} if difference != 0 else {}
        state.found["forwards"].append(row | told)
    if wanted.video:
        rolled = roll_llvq(model.model, state.config, wanted.drawn)
        row = {"name": variant.name, "chunks": errors_by_chunk(rolled, wanted.video)}
        state.found["rollouts"].append(row)
    if not state.options.no_ops:
        known = costs(prepared.documents["denoise"])
        stage = model.model.stage("denoise")
        rows = time_ops(stage, model.inputs, known, runs=state.options.op_runs)
        state.found["ops"][variant.name] = [_op_row(each, measured) for each in rows]
    return model, call


def _prepared(state: Run, variant: Variant) -> tuple[Prepared, Any]:
    """The graphs of a variant, and what launches its kernels."""
    folder = state.options.prepared / variant.folder if state.options.prepared else None
    if folder is not None:
        prepared = load(folder)
        kernels = read_kernels(prepared, folder, state.device, check=state.options.check)
        if kernels is not None:
            return prepared, kernels
    else:
        prepared = prepare(state.config, variant, state.target)
    if state.device.type != "cuda":
        return prepared, None
    from llvq.backends.triton.launchers import JustInTime

    return prepared, JustInTime(state.device)


def _graphed(state: Run, model: Llvq, wanted: Tensor) -> tuple[Callable[[], Any], float] | None:
    """A forward as one CUDA graph, and how far its result is from `wanted`; None on a CPU."""
    if state.device.type != "cuda":
        return None
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(state.device)
    with torch.cuda.stream(side):
        model.forward()
    torch.cuda.current_stream(state.device).wait_stream(side)
    with torch.cuda.graph(graph):
        result = model.forward()
    with torch.inference_mode():
        result.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize(state.device)
    return graph.replay, relative_l2(result, wanted)


def _errors(
    variant: Variant,
    model: Llvq,
    found: Tensor,
    wanted: Wanted,
) -> dict[str, Any]:
    """Of the velocity, and of K and V of each layer in the refresh before it (none where a kernel
    writes pages without handing them on); of a second run, and one in poisoned memory."""
    layers = [
        {"k": relative_l2(ours[0], plain[0]), "v": relative_l2(ours[1], plain[1])}
        for ours, plain in zip(model.written, wanted.written, strict=bool(model.written))
    ]
    return {
        "name": variant.name,
        "velocity": relative_l2(found, wanted.velocity),
        "layers": layers,
        "twice": relative_l2(model.forward(), found),
        "poisoned": relative_l2(poisoned(model.forward), found),
    }


def _op_row(row: OpTime, measured: Sequence[Ceiling]) -> dict[str, Any]:
    """With its share of the ceiling: that of the same shape, where one was measured."""
    what = row.cost.ceiling
    same = [c.rate for c in measured if c.what == what and c.shape == row.shape and c.rate]
    ceiling = same[0] if same else best(measured, what)
    share = row.rate() / ceiling if ceiling else None
    return {**row.facts(), "share": share}
