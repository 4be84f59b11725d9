"""The FP8 window of one layer: what its history costs in each format of pages.

    python -m benchmarks.window --forward-ms 144.4 --out benchmarks/results --name window_h100

At the sizes of 5B and 704x1280: 3 chunks of history and the chunk itself, as attention reads them.
Each window is first held against torch code on the same values. The history is the whole window
less that of the chunk alone; its share is that of all layers in a forward, `--forward-ms`, which
`benchmarks.denoise` measures. Calls are replayed as CUDA graphs, layers in turn, so that no cache
holds what the next one reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import command_of, write_files
from benchmarks.text_table import table
from llvq.backends.triton.fp8_scales import History
from llvq.backends.triton.fp8_window import FORMATS, Rows, rows_in_fp8
from llvq.backends.triton.launchers import JustInTime
from llvq.backends.triton.specialize import Launcher
from llvq.bench.machine import device_text, gpu_state, versions
from llvq.bench.timing import Spread, measure
from llvq.formats import fp8
from llvq.formats.kv import KV_FORMATS
from llvq.models.config import LONGLIVE2_5B, ModelConfig

LAYERS = 4  # that take turns
SEED = 0
# Codes that may be off by one: the kernel multiplies by what the torch code divides by.
OFF_BY_ONE = 0.01


@dataclass(frozen=True)
class Row:
    """A window with pages of one format; None: of the chunk alone. Bytes are those of the history
    in its pages and in FP8."""

    kv: str | None
    time: Spread
    nbytes: int
    off_by_one: float


def windows(launch: Launcher, config: ModelConfig, device: torch.device, repeats: int) -> list[Row]:
    """One row for the chunk alone, then one per format. Raises ValueError: wrong codes."""
    torch.manual_seed(SEED)
    tokens, pages = config.chunk_tokens, config.stream.window_chunks - 1
    heads, dim = config.dit.num_heads, config.dit.head_dim
    # As they come from a projection of all three: a row has q, k and v side by side.
    fused = torch.randn(1, tokens, 3, heads, dim, device=device, dtype=torch.bfloat16)
    k, v = fused[:, :, 1], fused[:, :, 2]
    q = torch.randn(1, tokens, heads, dim, device=device).to(fp8.DTYPE)
    k_scale = fp8.scale_of(2 * k.abs().amax().float())
    q_scale = torch.ones((), device=device)

    def window(history: History | None) -> Rows:
        return rows_in_fp8(launch, q, k, v, history, None, q_scale, k_scale)

    rows = [_row(None, [partial(window, None)], k, None, 0, device, repeats)]
    table_of = torch.arange(pages, device=device)
    for kv in FORMATS:
        pool = _filled(kv, pages, tokens, heads, dim, device)
        histories = [History(pool, table_of, layer, kv) for layer in range(LAYERS)]
        calls = [partial(window, history) for history in histories]
        nbytes = sum(t.nbytes for t in pool) // LAYERS + 2 * pages * tokens * heads * dim
        rows.append(_row(kv, calls, k, histories[0], nbytes, device, repeats))
    return rows


def _filled(
    kv: str, pages: int, tokens: int, heads: int, dim: int, device: torch.device
) -> list[Tensor]:
    specs = KV_FORMATS[kv].specs(LAYERS, pages, tokens, heads, dim, torch.bfloat16)
    pool = [torch.zeros(shape, dtype=dtype, device=device) for _, dtype, shape in specs]
    for layer in range(LAYERS):
        for which in range(2):
            for slot in range(pages):
                chunk = torch.randn(tokens, heads, dim, device=device).bfloat16()
                KV_FORMATS[kv].write(pool, layer, which, torch.tensor(slot, device=device), chunk)
    return pool


def _row(
    kv: str | None,
    calls: Sequence[Callable[[], Rows]],
    k: Tensor,
    history: History | None,
    nbytes: int,
    device: torch.device,
    repeats: int,
) -> Row:
    found = calls[0]()
    off = _off_by_one(found.k, found.scales[0], history, k)
    graphs = [_graphed(call, device) for call in calls]
    return Row(kv, measure(graphs, device, repeats=repeats), nbytes, off)


def _off_by_one(found: Tensor, scale: Tensor, history: History | None, own: Tensor) -> float:
    """The share of K's codes that are a neighbour of what torch code gives; no other may differ."""
    window = own[0].float()
    if history is not None:
        place = history.pages, history.layer, 0, history.table
        window = torch.cat([KV_FORMATS[history.kv_format].read(*place, torch.float32), window])
    wanted = fp8.encode(window, scale)
    same = found.view(torch.uint8) == wanted.view(torch.uint8)
    near = (found.float() - wanted.float()).abs() <= wanted.float().abs() / 7 + 2**-8
    share = 1 - float(same.float().mean())
    if not bool(near.all()) or share > OFF_BY_ONE:
        raise ValueError(f"wrong codes in a window: {share:.2%} differ from torch code")
    return share


def _graphed(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    if device.type != "cuda":
        return call
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def text_of(found: dict[str, Any], layers: int) -> str:
    rows, forward = found["rows"], found["forward_ms"]
    alone = rows[0]["time"]["median"]
    cells = []
    for row in rows:
        seconds = row["time"]["median"]
        cell = [row["kv"] or "no history", f"{seconds * 1e6:.1f}", f"{row['off_by_one']:.3%}"]
        if row["kv"]:
            history = seconds - alone
            share = layers * history * 1e3 / forward
            cell += [
                f"{history * 1e6:.1f}",
                f"{row['nbytes'] / history / 1e12:.2f}",
                f"{share:.2%}",
            ]
        cells.append(cell + [""] * (6 - len(cell)))
    columns = ("pages", "window us", "off by one", "history us", "TB/s", "of the forward")
    return f"$ {found['command']}\n{found['device']}; {found['versions']}\n\n" + table(
        columns, cells, left=1
    )


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forward-ms", type=float, required=True, help="of the whole denoiser")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, help="a folder for NAME.txt and NAME.json")
    parser.add_argument("--name", default="window")
    options = parser.parse_args(given)
    if not torch.cuda.is_available():
        print("torch sees no GPU here, and these kernels have nothing else", file=sys.stderr)
        return 2
    device, config = torch.device("cuda"), LONGLIVE2_5B
    found: dict[str, Any] = {
        "command": command_of("window"),
        "device": device_text(device),
        "versions": versions(),
        "gpu": gpu_state(device),
        "forward_ms": options.forward_ms,
    }
    rows = windows(JustInTime(device), config, device, options.repeats)
    found["rows"] = [asdict(row) for row in rows]
    text = text_of(found, config.dit.num_layers)
    print(text)
    write_files(options.out, options.name, found, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
