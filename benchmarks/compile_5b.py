"""Time and peak memory of compiling and planning LongLive-2.0-5B, without any weights.

python benchmarks/compile_5b.py > benchmarks/results/compile_5b_cpu.txt

Denoiser, VAE and text encoder at 704 x 1280 pixels with the default recipe, on `meta`. One run.
"""

from __future__ import annotations

import platform
import resource
import time

import torch

from llvq.compiler import compile_model
from llvq.models.config import LONGLIVE2_5B
from llvq.plan import plan_compiled
from llvq.recipe import NVFP4


def peak_mib() -> float:
    """Peak resident memory of this process (VmHWM)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def row(name: str, seconds: float, note: str = "") -> None:
    print(f"  {name:<24} {seconds:7.1f} s {peak_mib():8.0f} MiB   {note}".rstrip(), flush=True)


def main() -> None:
    begin = time.perf_counter()
    print("$ python benchmarks/compile_5b.py")
    print(f"Python {platform.python_version()}, torch {torch.__version__},", end=" ")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads\n")
    print(f"  {'phase':<24} {'time':>9} {'peak RSS':>12}")
    print(f"  {'before':<24} {'':>9} {peak_mib():8.0f} MiB")
    compiled = compile_model(LONGLIVE2_5B, NVFP4)
    spent = time.perf_counter() - begin
    passes = sum(report.milliseconds for report in compiled.reports) / 1e3
    row("capture, encoders", spent - passes, "denoiser with VAE decoder; text and image encoder")
    for report in compiled.reports:
        before, after = report.nodes
        row(report.name, report.milliseconds / 1e3, f"{before} -> {after} nodes")
    row("compile, all", spent, f"{len(compiled.rewrites)} rewrites")
    start = time.perf_counter()
    plan = plan_compiled(compiled, target="sm_100a")
    row("plan for sm_100a", time.perf_counter() - start, f"{plan.total / 1e9:.1f} GB at the peak")


if __name__ == "__main__":
    main()
