"""Time of quantizing one weight on the CPU, by block rule.

python benchmarks/quantize_weights.py > benchmarks/results/quantize_weights_cpu.txt

`quantize_checkpoint.py` beside this times whole files, and their memory.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch

from llvq.formats import nvfp4

WIDTH, HIDDEN = 3072, 14336
REPEATS = 15


def time_one_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, HIDDEN, generator=generator).mul_(0.02).bfloat16()
    print(f"\none bf16 weight [{WIDTH}, {HIDDEN}], {weight.numel() / 1e6:.1f} M; {REPEATS} runs")
    for rule in nvfp4.BLOCK_RULES:
        nvfp4.quantize(weight, block_rule=rule)
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            nvfp4.quantize(weight, block_rule=rule)
            seconds.append(time.perf_counter() - start)
        seconds.sort()
        print(f"  {rule:14} best {seconds[0]:6.3f} s   median {seconds[REPEATS // 2]:6.3f} s")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    print("$ python benchmarks/quantize_weights.py")
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f};")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    time_one_weight()


if __name__ == "__main__":
    main()
