"""Time and peak memory of quantizing weights on the CPU.

python benchmarks/quantize_weights.py > benchmarks/results/quantize_weights_cpu.txt

Makes a bf16 checkpoint of random weights, six DiT blocks of Wan2.2-TI2V-5B and one billion
parameters, in a temporary folder (2 GB, deleted afterwards), and quantizes it file to file.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import safetensors
import torch

from llvq.checkpoints.safetensors_file import SafetensorsSource
from llvq.formats import nvfp4
from llvq.sources import TensorSpec
from llvq.weights import WeightRecord
from llvq.weights_writer import write_shards

WIDTH, HIDDEN, BLOCKS = 3072, 14336, 6
LINEARS = (*((WIDTH, WIDTH),) * 8, (HIDDEN, WIDTH), (WIDTH, HIDDEN))
REPEATS = 7
GIB = 2**30


class RandomSource:
    """A checkpoint that is made up as it is read; every read of a name gives the same tensor."""

    def __init__(self) -> None:
        shapes = [shape for _ in range(BLOCKS) for shape in LINEARS]
        self._shapes = {f"linear.{i}.weight": shape for i, shape in enumerate(shapes)}

    def names(self) -> Sequence[str]:
        return tuple(self._shapes)

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(torch.bfloat16, self._shapes[name])

    def read(self, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.names().index(name))
        weight = torch.empty(self._shapes[name], dtype=torch.bfloat16)
        return weight.normal_(std=0.02, generator=generator)


class PeakMemory:
    """Samples the resident memory of this process, anonymous and file-mapped, until it exits."""

    def __enter__(self) -> PeakMemory:
        self.peaks = {"RssAnon": 0, "RssFile": 0, "VmRSS": 0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            for key, value in memory_now().items():
                self.peaks[key] = max(self.peaks[key], value)


def memory_now() -> dict[str, int]:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {key: int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile", "VmRSS")}


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


def time_checkpoint(folder: Path) -> None:
    random = RandomSource()
    copies = [WeightRecord(name, "copy", (name,)) for name in random.names()]
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    write_shards(copies, random, folder / "in", max_shard_bytes=GIB // 2)
    source = SafetensorsSource(folder / "in", sorted((folder / "in").iterdir()))
    plan = [
        WeightRecord(name, "quantize", (name,), block_rule="four_over_six")
        for name in random.names()
    ]
    before = memory_now()["RssAnon"]
    with PeakMemory() as memory:
        start = time.perf_counter()
        write_shards(plan, source, folder / "out")
        seconds = time.perf_counter() - start
    parameters = sum(torch.Size(source.spec(name).shape).numel() for name in source.names())
    size_in, size_out = (
        sum(path.stat().st_size for path in (folder / part).iterdir()) for part in ("in", "out")
    )
    print("\na checkpoint, file to file, four_over_six (page cache warm)")
    print(f"  parameters          {parameters / 1e9:.3f} B in {len(source.names())} tensors")
    print(f"  size                {size_in / GIB:.2f} GiB -> {size_out / GIB:.2f} GiB")
    print(f"  time                {seconds:.1f} s, {parameters / seconds / 1e6:.0f} M/s")
    print(f"  anonymous memory    {before / GIB:.2f} GiB before, {_peak(memory, 'RssAnon')} peak")
    print(f"  file-mapped memory  {_peak(memory, 'RssFile')} peak (the input, reclaimable)")
    print(f"  resident memory     {_peak(memory, 'VmRSS')} peak")


def _peak(memory: PeakMemory, key: str) -> str:
    return f"{memory.peaks[key] / GIB:.2f} GiB"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    folder = parser.parse_args().folder
    print("$ python benchmarks/quantize_weights.py", *sys.argv[1:])
    print(f"{cpu_name()}, {torch.get_num_threads()} threads; Python {platform.python_version()},")
    print(f"torch {torch.__version__}, safetensors {safetensors.__version__}")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        time_checkpoint(Path(temporary))
    time_one_weight()


if __name__ == "__main__":
    main()
