"""Time and resident memory of quantizing a checkpoint, file to file, on the CPU.

python benchmarks/quantize_checkpoint.py > benchmarks/results/quantize_checkpoint_cpu.txt

Makes random bf16 checkpoints in a temporary folder (up to 5 GB at once, deleted afterwards): a
LongLive-2.0 denoiser of one billion parameters, six blocks of the published width, and a lone
matrix of 2.1 GB, the token embedding of UMT5-XXL. Each is written both ways that checkpoints are
published, and quantized by a process of its own, whose VmHWM is the most memory that was ever
resident, file-mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import safetensors
import torch
from safetensors.torch import save_file

from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.specs import dit_specs
from llvq.models.config import DitConfig, TextConfig
from llvq.sources import TensorSource
from llvq.weights import WeightRecord
from llvq.weights_writer import write_shards

BLOCKS = 6
SHARDS = 3
GIB = 2**30
Shapes = Mapping[str, tuple[int, ...]]


class PeakMemory:
    """Samples the memory of this process, anonymous and file-mapped, until it exits. Bytes."""

    def __enter__(self) -> PeakMemory:
        self.peaks = {"RssAnon": 0, "RssFile": 0}
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
            now = memory_now()
            self.peaks = {key: max(peak, now[key]) for key, peak in self.peaks.items()}


def memory_now() -> dict[str, int]:
    """Bytes, as /proc/self/status names them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    keys = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    return {key: int(fields[key].split()[0]) * 1024 for key in keys}


def checkpoints() -> dict[str, Shapes]:
    text = TextConfig()
    return {
        "denoiser": dit_specs(DitConfig(num_layers=BLOCKS)),
        "embedding": {"shared.weight": (text.vocab_size, text.dim)},
    }


def random_tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    empty = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    return {name: t.normal_(std=0.02, generator=generator) for name, t in empty.items()}


def write_checkpoints(folder: Path, name: str, shapes: Shapes) -> dict[str, Path]:
    """Label -> path, of one set of tensors in both formats."""
    tensors = random_tensors(shapes)
    published = {"generator": {f"model.{key}": tensor for key, tensor in tensors.items()}}
    torch.save(published, folder / f"{name}.pt")
    sharded = folder / f"{name}-shards"
    sharded.mkdir()
    count = min(SHARDS, len(tensors))
    for number in range(count):
        part = dict(list(tensors.items())[number::count])
        save_file(part, sharded / f"m-{number + 1:05d}-of-{count:05d}.safetensors")
    kind = f"safetensors, {count} shard{'s' * (count > 1)}"
    return {"torch.save": folder / f"{name}.pt", kind: sharded}


def plan(source: TensorSource) -> list[WeightRecord]:
    """Matrices of the blocks, or the only matrix there is, become NVFP4; the rest is copied."""
    names = source.names()
    return [
        WeightRecord(name, "quantize", (name,), block_rule="four_over_six")
        if len(source.spec(name).shape) == 2 and ("blocks." in name or len(names) == 1)
        else WeightRecord(name, "copy", (name,))
        for name in names
    ]


def measure(path: Path, folder: Path) -> None:
    """In a process of its own: quantize `path` into `folder`, print what it took as JSON."""
    before = memory_now()["VmHWM"]
    with PeakMemory() as memory:
        start = time.perf_counter()
        source = open_tensors(path)
        write_shards(plan(source), source, folder)
        seconds = time.perf_counter() - start
    parameters = sum(torch.Size(source.spec(name).shape).numel() for name in source.names())
    result = {"parameters": parameters, "tensors": len(source.names()), "seconds": seconds}
    print(json.dumps({**result, "before": before, **memory.peaks, **_high_water()}))


def _high_water() -> dict[str, int]:
    return {"VmHWM": memory_now()["VmHWM"]}


def report(label: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        command = [sys.executable, __file__, "--measure", str(path), out]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        size_out = sum(file.stat().st_size for file in Path(out).iterdir())
    files = [path] if path.is_file() else list(path.iterdir())
    size_in = sum(file.stat().st_size for file in files)
    got = json.loads(done.stdout)
    rate = got["parameters"] / got["seconds"] / 1e6
    print(f"  {label}")
    print(f"    size             {size_in / GIB:.2f} GiB -> {size_out / GIB:.2f} GiB")
    print(f"    time             {got['seconds']:.1f} s, {rate:.0f} M parameters/s")
    print(
        f"    resident, peak   {got['VmHWM'] / GIB:.2f} GiB (VmHWM, file-mapped pages included; "
        f"{got['before'] / GIB:.2f} GiB before)"
    )
    print(f"    anonymous, peak  {got['RssAnon'] / GIB:.2f} GiB")
    print(f"    mapped, peak     {got['RssFile'] / GIB:.2f} GiB", flush=True)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    print("$ python benchmarks/quantize_checkpoint.py", *sys.argv[1:])
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f};")
    print(f"Python {platform.python_version()}, torch {torch.__version__},", end=" ")
    print(f"safetensors {safetensors.__version__}; four_over_six, page cache warm")
    for name, shapes in checkpoints().items():
        parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
        print(f"\n{name}: {parameters / 1e9:.3f} B parameters in {len(shapes)} tensors")
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for label, path in write_checkpoints(Path(folder), name, shapes).items():
                report(label, path)


if __name__ == "__main__":
    main()
