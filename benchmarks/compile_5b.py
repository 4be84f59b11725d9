"""Time and peak memory of compiling LongLive-2.0-5B: capture and passes, without any weights.

python benchmarks/compile_5b.py > benchmarks/results/compile_5b_cpu.txt

Denoiser, VAE and text encoder at 704 x 1280 pixels with the default recipe, on `meta`. One run.
"""

from __future__ import annotations

import platform
import resource
import time

import torch

from llvq.compiler import AUXILIARY
from llvq.models.chunk import capture_chunk
from llvq.models.config import LONGLIVE2_5B
from llvq.passes import PIPELINE, run
from llvq.recipe import NVFP4


def peak_mib() -> float:
    """Peak resident memory of this process (VmHWM)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def row(name: str, seconds: float, note: str = "") -> None:
    print(f"  {name:<24} {seconds:7.1f} s {peak_mib():8.0f} MiB   {note}".rstrip(), flush=True)


def main() -> None:
    dtype, begin = torch.bfloat16, time.perf_counter()
    print("$ python benchmarks/compile_5b.py")
    print(f"Python {platform.python_version()}, torch {torch.__version__},", end=" ")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads\n")
    print(f"  {'phase':<24} {'time':>9} {'peak RSS':>12}")
    print(f"  {'before':<24} {'':>9} {peak_mib():8.0f} MiB")
    start = time.perf_counter()
    program = capture_chunk(LONGLIVE2_5B, dtype)
    row("capture", time.perf_counter() - start, f"{len(program.graph.graph.nodes)} nodes")
    result = run(program, NVFP4, PIPELINE)
    for report in result.reports:
        before, after = report.nodes
        row(report.name, report.milliseconds / 1e3, f"{before} -> {after} nodes")
    for name, make in AUXILIARY.items():
        start = time.perf_counter()
        auxiliary = make(LONGLIVE2_5B, dtype)
        run(auxiliary, NVFP4, PIPELINE[:1])
        row(name, time.perf_counter() - start, f"{len(auxiliary.graph.graph.nodes)} nodes")
    row("all", time.perf_counter() - begin, f"{len(result.rewrites)} rewrites")


if __name__ == "__main__":
    main()
