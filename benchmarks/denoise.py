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
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.denoise_ceilings import Ceiling, Linear, ceilings
from benchmarks.denoise_compiled import COMPILE, time_compiled
from benchmarks.denoise_models import Plain, random_inputs
from benchmarks.denoise_rollout import Drawn, draw, roll_plain
from benchmarks.denoise_run import SEED, Run, Wanted
from benchmarks.denoise_table import text_of
from benchmarks.denoise_variants import time_variants
from benchmarks.prepared import HOPPER, Variant
from benchmarks.random_weights import device_weights
from benchmarks.report import note, write_files
from llvq.bench.machine import gpu_state
from llvq.models.config import ModelConfig

CPU_VARIANTS = tuple(Variant("w4a4-emulated", kv) for kv in ("none", "fp8", "nvfp4"))


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
    time_compiled(state, plain)
    wanted = Wanted(wanted, plain.written, *_rolled(state, plain))
    time_variants(state, sources, given, wanted, measured)
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
        text = text_of(state.found)
        print(text)
        write_files(options.out, options.name, state.found, text)
    return 1 if state.found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
