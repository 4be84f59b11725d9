"""One denoise forward: plain PyTorch against every numerics, op by op, on one device in one run.

    python -m benchmarks.denoise --out benchmarks/results --name denoise_h100
    python -m benchmarks.denoise --prepared build/prepared --compile blocks
    python -m benchmarks.denoise --device cpu --tiny

The 5B denoiser at 704x1280 with random weights and a full window: 7040 queries, 28160 keys. First
come the ceilings of the device, then the model in PyTorch (bf16, the fastest attention that it has;
compiled with `--compile`), then what llvq makes of the same weights, and PyTorch once more at the
end: the two say how much the device moved in between. `--prepared` takes graphs and kernels that
`benchmarks.prepared` made elsewhere; without it they are made here, which takes minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from benchmarks.denoise_ceilings import Ceiling, Linear, best, ceilings
from benchmarks.denoise_models import (
    Given,
    Llvq,
    Plain,
    poisoned,
    random_inputs,
    relative_l2,
)
from benchmarks.denoise_ops import OpTime, costs, time_ops
from benchmarks.denoise_rollout import Drawn, draw, errors_by_chunk, roll_llvq, roll_plain
from benchmarks.denoise_table import text_of
from benchmarks.prepared import (
    HOPPER,
    Prepared,
    Variant,
    denoiser_config,
    executable,
    load,
    prepare,
    read_kernels,
)
from benchmarks.random_weights import carry_out, device_weights, weight_specs
from llvq.bench.machine import device_text, gpu_state, versions
from llvq.bench.timing import Spread, Timer, measure
from llvq.errors import LlvqError
from llvq.models.config import ModelConfig
from llvq.runtime.device import chip_of, exact_device

SEED = 0
CPU_VARIANTS = tuple(Variant("w4a4-emulated", kv) for kv in ("none", "fp8", "nvfp4"))
COMPILE = ("none", "blocks", "whole")


class OutOfTime(BaseException):
    """No `except Exception` of a compiler may hold it."""


@dataclass(frozen=True)
class Wanted:
    """What PyTorch gave: the velocity, K and V of each layer written before it, and a video."""

    velocity: Tensor
    written: Sequence[tuple[Tensor, Tensor]]
    drawn: Drawn
    video: Sequence[Tensor]


class Run:
    """The state of one run, and what it has found so far as plain data."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, exact_device(options.device)
        self.config = denoiser_config(tiny=options.tiny)
        self.specs = weight_specs(self.config, torch.bfloat16)
        self.found: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "benchmarks.denoise", *sys.argv[1:]]),
            "device": device_text(self.device),
            "versions": versions(),
            "gpu": {"at the beginning": gpu_state(self.device)},
            "model": _model_text(self.config),
            "forwards": [],
            "pages": [],
            "errors": [],
            "rollouts": [],
            "ops": {},
            "failed": {},
        }

    @property
    def target(self) -> str:
        if self.device.type != "cuda":
            return "cpu"
        return chip_of(torch.cuda.get_device_capability(self.device))

    def forward(self, call: Callable[[], Any]) -> Spread:
        return measure([call], self.device, repeats=self.options.repeats)

    def held(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def peak_of(self, call: Callable[[], Any], before: int) -> int | None:
        """The most bytes of tensors while `call` runs, beyond those that were there `before`."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def run(state: Run) -> None:
    note(f"ceilings of {state.found['device']}")
    measured = _ceilings(state)
    state.found["ceilings"] = [asdict(row) for row in measured]
    before = state.held()
    sources = device_weights(state.specs, state.device, SEED)
    given = random_inputs(state.config, state.device, SEED)
    note("PyTorch in bf16")
    plain = Plain(state.config, sources, given, state.device)
    plain.fill()
    wanted = plain.forward()
    _time_plain(state, "PyTorch eager, bf16", plain, before)
    _time_compiled(state, plain)
    wanted = Wanted(wanted, plain.written, *_rolled(state, plain))
    _time_variants(state, sources, given, wanted, measured)
    note("PyTorch once more")
    _time_plain(state, "PyTorch eager, bf16, at the end", plain, None)
    state.found["gpu"]["at the end"] = gpu_state(state.device)


def _rolled(state: Run, plain: Plain) -> tuple[Drawn, list[Tensor]]:
    """A video of `--rollout` chunks by PyTorch, for the others to be compared with."""
    chunks = state.options.rollout
    note(f"a video of {chunks} chunks by PyTorch")
    drawn = draw(state.config, chunks, state.device, SEED)
    return drawn, roll_plain(plain.model, state.config, drawn)


def _ceilings(state: Run) -> list[Ceiling]:
    dit, stream = state.config.dit, state.config.stream
    tokens, dim, ffn = state.config.chunk_tokens, dit.dim, dit.ffn_dim
    state.found["flop"] = _flop(state.config)
    shapes = ((dim, dim), (dim, 3 * dim), (dim, ffn), (ffn, dim))
    linears = [Linear(tokens, k, n) for k, n in shapes]
    keys = tokens * stream.window_chunks
    return ceilings(state.device, linears, tokens, keys, dit.num_heads, dit.head_dim)


def _flop(config: ModelConfig) -> int:
    """Of one forward at the full window: linears of the blocks, and both attentions."""
    dit, n = config.dit, config.chunk_tokens
    linears = 2 * n * (6 * dit.dim * dit.dim + 2 * dit.dim * dit.ffn_dim)
    keys = n * config.stream.window_chunks + dit.text_len
    return dit.num_layers * (linears + 4 * n * keys * dit.dim)


def _time_plain(state: Run, name: str, plain: Plain, before: int | None) -> None:
    row: dict[str, Any] = {"name": name, "time": asdict(state.forward(plain.forward))}
    if before is not None:
        row["weights"] = sum(parameter.nbytes for parameter in plain.model.parameters())
        row["pages"] = sum(t.nbytes for t in (*plain.keys, *plain.values))
        row["peak"] = state.peak_of(plain.forward, before)
    state.found["forwards"].append(row)


def _time_compiled(state: Run, plain: Plain) -> None:
    """torch.compile, within its limit: each block once for all (`blocks`), or the whole model."""
    mode, limit = state.options.compile, state.options.compile_limit
    if mode == "none":
        return
    note(f"torch.compile of {mode}, at most {limit} s")
    model, began = plain.model, time.perf_counter()
    blocks = list(model.blocks)
    try:
        with _time_limit(limit):
            if mode == "blocks":
                for place, block in enumerate(blocks):
                    model.blocks[place] = torch.compile(block)
            else:
                plain.model = torch.compile(model)
            plain.forward()
            Timer(state.device).synchronize()
        spent = time.perf_counter() - began
        row = {
            "name": f"torch.compile ({mode}), bf16",
            "time": asdict(state.forward(plain.forward)),
        }
        state.found["forwards"].append(row | {"note": f"compiled in {spent:.0f} s"})
    except OutOfTime:
        note(f"not compiled within {limit} s")
        state.found["compile"] = f"torch.compile ({mode}) was not done within {limit} s"
    plain.model = model
    for place, block in enumerate(blocks):
        model.blocks[place] = block


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _time_variants(
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
        _give_back(state.device)
    if len(turns) > 1:
        note("pages in turns")
        state.found["pages"] = _in_turns(state, turns)


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
    return {
        "op": row.op,
        "implementation": row.implementation,
        "shape": row.shape,
        "calls": row.calls,
        "seconds": row.seconds,
        "flop": row.cost.flop,
        "bytes": row.cost.nbytes,
        "ceiling": what,
        "rate": row.rate(),
        "share": share,
    }


def _model_text(config: ModelConfig) -> str:
    height, width = config.pixel_hw
    tokens, chunks = config.chunk_tokens, config.stream.window_chunks
    return (
        f"{config.dit.num_layers} layers of {config.dit.dim}, {height}x{width}, {tokens} queries, "
        f"{tokens * chunks} keys, seed {SEED}"
    )


def note(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda", help="default: cuda")
    add("--tiny", action="store_true", help="the tiny model instead of 5B")
    add("--prepared", type=Path, metavar="DIR", help="graphs and kernels made elsewhere")
    add("--check", action="store_true", help="prepared kernels against their references first")
    add("--variants", nargs="*", metavar="V", help="as w4a8-nvfp4 (default: all)")
    add("--compile", choices=COMPILE, default="none", help="torch.compile as well")
    add("--compile-limit", type=int, default=240, metavar="S", help="seconds (default 240)")
    add("--repeats", type=int, default=20, help="of a forward (default 20)")
    add("--rounds", type=int, default=3, help="of forwards on other pages (default 3)")
    add("--op-runs", type=int, default=3, help="runs of all ops one by one (default 3)")
    add("--rollout", type=int, default=0, metavar="N", help="errors of a video of N chunks as well")
    add("--no-ops", action="store_true", help="leave the table of ops out")
    add("--out", type=Path, help="a folder for NAME.txt and NAME.json")
    add("--name", default="denoise")
    options = parser.parse_args(given)
    offered = {v.folder: v for v in (CPU_VARIANTS if options.device == "cpu" else HOPPER)}
    unknown = set(options.variants or ()) - offered.keys()
    if unknown:
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(offered)}")
    options.variants = [offered[name] for name in options.variants or offered]
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    if options.device != "cpu" and not torch.cuda.is_available():
        print("torch sees no GPU here; use --device cpu --tiny", file=sys.stderr)
        return 2
    state = Run(options)
    try:
        run(state)
    finally:
        _write(state.found, options)
    return 1 if state.found["failed"] else 0


def _write(found: Mapping[str, Any], options: argparse.Namespace) -> None:
    text = text_of(found)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{options.name}.txt").write_text(text, encoding="utf-8")
        document = json.dumps(found, indent=1) + "\n"
        (options.out / f"{options.name}.json").write_text(document, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
