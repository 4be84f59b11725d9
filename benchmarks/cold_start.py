"""From the start of a process to the first finished chunk of a box, step by step.

    python -m benchmarks.cold_start build/5b.llvq --runs 3

Every run is a process of its own. The box is hashed, as `llvq run` does it; embeddings are random,
so that no text encoder is loaded. The files of the box are in the page cache of the machine from
the second run on, and often in the first.
"""

from __future__ import annotations

import time

STARTED = time.time()

import argparse  # noqa: E402  the clock starts before anything is imported
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterable, Sequence  # noqa: E402
from functools import wraps  # noqa: E402
from importlib.util import cache_from_source  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

CHILD = "--child"
# Module, function -> what its time is called. They run inside of `loading`.
STEPS = {
    ("llvq.runtime.load", "rehearse"): "check graphs on meta",
    ("llvq.runtime.box_kernels", "load_kernels"): "load kernels",
    ("llvq.runtime.box_kernels", "self_check"): "self-check of kernels",
    ("llvq.runtime.load", "attach_weights"): "read and fold weights",
}


class Steps:
    """Seconds by step, in the order in which they began."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, step: str, seconds: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize()
                self.add(step, time.perf_counter() - began)

        return call

    def watch(self) -> None:
        """Put a stopwatch on every function of STEPS."""
        for (module, name), step in STEPS.items():
            owner = sys.modules[module]
            setattr(owner, name, self.timed(step, getattr(owner, name)))


def synchronize() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def child(path: Path, spawned: float) -> dict[str, Any]:
    """One cold start; `spawned` is the time of day when the process was asked for."""
    steps = Steps()
    steps.add("start Python", STARTED - spawned)
    began = time.perf_counter()
    import torch

    import llvq.runtime.box_kernels
    import llvq.runtime.load
    from llvq.bench.run import LEFT_OUT
    from llvq.bench.stages import random_script
    from llvq.runtime.device import TARGET_DEVICES
    from llvq.runtime.load import open_runnable
    from llvq.runtime.session import Session

    steps.add("import torch and llvq", time.perf_counter() - began)
    if torch.cuda.is_available():
        steps.timed("context of the GPU", lambda: torch.zeros(1, device="cuda"))()
    steps.watch()
    box = steps.timed("open and hash the box", open_runnable)(path)
    stages = box.manifest["stages"].keys() - set(LEFT_OUT)
    device, before = TARGET_DEVICES[box.manifest["target"]], dict(steps.seconds)
    began = time.perf_counter()
    model = llvq.runtime.load.executable(box, device, stages=stages)
    synchronize()
    inside = sum(steps.seconds.values()) - sum(before.values())
    steps.add("rest of loading", time.perf_counter() - began - inside)
    script = random_script(model, 1)
    condition = {"prompt_embeds": script[0].embeds}
    steps.timed("first condition", model.stage("condition"))(condition)
    latents_only = "decode" not in model.stages
    session = Session(model, script, latents_only=latents_only)
    (chunk,) = steps.timed("first chunk, decoded", lambda: [_taken(c) for c in session])()
    return {
        "steps": steps.seconds,
        "total": time.time() - spawned,
        "frames": len(chunk),
        "target": box.manifest["target"],
        "numerics": box.manifest["numerics"],
        "bytecode": Path(cache_from_source(torch.__file__)).is_file(),
    }


def _taken(chunk: Any) -> Any:
    made = chunk.latents[0] if chunk.frames is None else chunk.frames
    return made.cpu()


def spawn(path: Path) -> dict[str, Any]:
    """A run in a fresh process. Raises CalledProcessError."""
    command = [sys.executable, "-m", "benchmarks.cold_start", str(path), CHILD, str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def text_of(document: dict[str, Any]) -> str:
    runs = document["runs"]
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    first = runs[0]
    lines = [
        f"$ {document['command']}",
        f"{document['device']}; {versions}",
        f"{document['box']}, {first['target']}, numerics {first['numerics']}; "
        f"{first['frames']} frames",
        "Python's bytecode of PyTorch was there"
        if first["bytecode"]
        else "no bytecode of PyTorch was there: every run compiled the Python that it imports",
        "",
        _row("seconds of each run", [f"run {place + 1}" for place in range(len(runs))]),
    ]
    for step in dict.fromkeys(step for run in runs for step in run["steps"]):
        lines.append(_row(step, (f"{run['steps'].get(step, 0.0):.2f}" for run in runs)))
    lines.append(_row("process start to first chunk", (f"{run['total']:.2f}" for run in runs)))
    return "\n".join(lines) + "\n"


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<30}" + "".join(f"{cell:>10}" for cell in cells)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("box", type=Path)
    parser.add_argument("--runs", type=int, default=2, help="processes, one by one (default 2)")
    parser.add_argument("--out", type=Path, help="a folder for NAME.txt and NAME.json")
    parser.add_argument("--name", default="cold_start")
    parser.add_argument(CHILD, type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.child is not None:
        print(json.dumps(child(options.box, options.child)))
        return 0
    runs = [spawn(options.box) for _ in range(options.runs)]
    import torch

    from benchmarks.report import command_of, write_files
    from llvq.bench.machine import device_text, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    document = {
        "command": command_of("cold_start"),
        "device": device_text(device),
        "versions": versions(),
        "box": str(options.box),
        "runs": runs,
    }
    text = text_of(document)
    print(text, end="")
    write_files(options.out, options.name, document, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
